"""`dualcaps models`."""

from collections.abc import Mapping
from dataclasses import dataclass

from dualcaps.cli.display import describe_run, print_notes, stdout, table
from dualcaps.cli.options import PluginFiles
from dualcaps.errors import display_path
from dualcaps.registry import DATASETS, EXPERIMENTS, MODELS, ROUTING_METHODS, TRUNKS, Entry

_SHAPES = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32)}


@dataclass(frozen=True)
class Models:
    """List networks with their sizes, trained ones, trunks, routing methods, data sets, experiments and recipes."""

    plugin: PluginFiles = ()

    def run(self) -> None:
        """Count parameters and print."""
        import dualcaps.data.sources
        import dualcaps.study.experiments  # noqa: F401  # both register their parts
        from dualcaps.models import list_models
        from dualcaps.runs.run import Run, trained_networks
        from dualcaps.training.recipes import RECIPES

        headings = [f"{shape}{decoder}" for shape in _SHAPES for decoder in ("", ", decoder")]
        columns = table("network", *headings, right=headings)
        for name in list_models():
            columns.add_row(_with_origin(name, MODELS[name]), *_parameter_counts(name))
        console = stdout()
        console.print(columns)
        console.print()
        others: dict[str, Mapping[str, Entry]] = {
            "trunks": TRUNKS,
            "routing methods": ROUTING_METHODS,
            "data sets": DATASETS,
            "experiments": EXPERIMENTS,
        }
        for kind, registry in others.items():
            names = [_with_origin(name, entry) for name, entry in registry.items()]
            if kind == "trunks":
                names.append("timm:NAME")
            console.print(f"{kind:<17}{', '.join(names)}", soft_wrap=True)
        console.print()
        for name, recipe in RECIPES.items():
            console.print(f"recipe {name:<10}{recipe.summary}", soft_wrap=True)
        for name, path in trained_networks().items():
            console.print(f"trained {name}: {describe_run(Run.open(path))}", soft_wrap=True)


def _with_origin(name: str, entry: Entry) -> str:
    return name if entry.origin == "dualcaps" else f"{name} ({display_path(entry.origin)})"


def _parameter_counts(name: str) -> list[str]:
    """Parameters without and with the decoder for each shape; a dash where there is no such network."""
    import torch

    from dualcaps.models import count_parameters, create_model

    counts = []
    for shape in _SHAPES.values():
        try:
            with torch.device("meta"):
                model = create_model(name, shape)
        except Exception as error:
            if MODELS[name].origin == "dualcaps":
                raise
            print_notes([f"{name} cannot be built for {shape}: {error}"])
            counts += ["–", "–"]
            continue
        decoder = count_parameters(model.decoder) if model.decoder else None
        counts += [f"{count_parameters(model) - (decoder or 0):,}", f"{count_parameters(model):,}" if decoder else "–"]
    return counts
