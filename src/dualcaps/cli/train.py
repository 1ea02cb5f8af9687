"""`dualcaps train`."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dualcaps.cli.display import print_notes
from dualcaps.cli.options import (
    DataOptions,
    NetworkOptions,
    PluginFiles,
    TrainingOptions,
    given_options,
    parse_options,
)
from dualcaps.config import DataConfig, ModelConfig, RecipeName, TrainConfig
from dualcaps.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dualcaps.training.callbacks import Callback


@dataclass(frozen=True)
class Train:
    """Train a network and keep the run in a folder."""

    data: tyro.conf.OmitArgPrefixes[DataOptions] = dataclasses.field(default_factory=DataOptions)
    recipe: Annotated[RecipeName | None, tyro.conf.arg(help_behavior_hint="(default: by the data)")] = None
    """Network and training by name: paper, as in the paper; strong, for the highest accuracy; fast, in a few minutes;
    photos, for your own images, which is their default. Other options take precedence."""
    minutes: float = 15.0
    """photos: how long training may take; the image size is chosen by it."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the recipe's)")] = None
    """The network; `dualcaps models` lists them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Run folder, by default runs/<data>-<model>-seed<seed>, numbered if that exists."""
    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Go on with the run in --out, or the last of that name, where it stopped; with more --epochs a finished run is
    trained longer."""
    logger: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)"),
    ] = ()
    """Also log each epoch with tensorboard or trackio."""
    plugin: PluginFiles = ()
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = dataclasses.field(default_factory=NetworkOptions)
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE…", help_behavior_hint="")] = ()
    """Further options of the network, its trunk or its routing method; values are JSON, otherwise text."""
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = dataclasses.field(default_factory=TrainingOptions)

    def run(self) -> None:
        """Load the images, build the network, train it, print the result."""
        given = given_options(self.training)
        TrainConfig(**given)  # refuses wrong values before torch is imported, which takes a second
        if not self.minutes > 0:
            raise ConfigError(f"--minutes must be above 0, got {self.minutes:g}")
        given_switches = given_options(self.network) | parse_options(self.options)

        import torch

        from dualcaps.data.load import complete_config, load_data
        from dualcaps.models import configure, create_model
        from dualcaps.training.fit import fit
        from dualcaps.training.recipes import default_recipe, photos_rate, recipe

        callbacks = _loggers(self.logger)
        options = complete_config(**vars(self.data))
        recipe_name = self.recipe or default_recipe(options.source, self.model)
        chosen = recipe(recipe_name)
        name = self.model or chosen.model
        fixed = {"trunk", "trunk_weights", "width"} & given_switches.keys()
        if recipe_name == "photos" and name == chosen.model and not fixed:
            given_switches = {**_pretrained_trunk(), **given_switches}
        switches = chosen.switches(name, given_switches)
        config = chosen.training_config(given)
        if recipe_name == "photos":

            def network(image_shape: tuple[int, int, int], num_classes: int) -> ModelConfig:
                return configure(name, image_shape, num_classes, **switches)

            options = self._with_image_size(options, name, network, config)
        data = load_data(**vars(options))
        if "epochs" not in given:
            config = dataclasses.replace(config, epochs=chosen.epochs(len(data.train)))
        print_notes(data.notes)
        torch.manual_seed(config.seed)
        model = create_model(name, data.image_shape, len(data.classes), **switches)
        if recipe_name == "photos" and "lr" not in given and config.lr is not None:
            lr, reason = photos_rate(model.config, softmax=model.softmax)
            config = dataclasses.replace(config, lr=lr)
            print_notes([f"recipe photos: learning rate {lr}, as {reason}"] if reason else [])
        result = fit(model, data, config, out=self.out, resume=self.resume, callbacks=callbacks)
        evaluated_on = "validation" if config.protocol == "clean" else "test"
        epochs = len(result.history)
        for name, value in (
            ("test accuracy", f"{100 * result.test_accuracy:.2f} % of {len(data.test):,} images"),
            ("selected", f"epoch {result.selected_epoch}, {evaluated_on} {100 * result.selection_accuracy:.2f} %"),
            ("trained", f"{epochs} epoch{'s' * (epochs > 1)}, {sum(line['seconds'] for line in result.history):.0f} s"),
            ("run", str(result.run)),
            ("pictures", ", ".join(path.name for path in sorted(result.run.glob("*.png")))),
        ):
            print(f"{name:<15}{value}")

    def _with_image_size(
        self,
        options: DataConfig,
        model: str,
        network: Callable[[tuple[int, int, int], int], ModelConfig],
        config: TrainConfig,
    ) -> DataConfig:
        """The data options with the image size of the run to resume, or with what `plan_photos` chooses."""
        from dualcaps.data.load import source_name
        from dualcaps.runs.run import Run
        from dualcaps.training.fit import default_path
        from dualcaps.training.recipes import plan_photos

        if self.resume:
            path = self.out or default_path(source_name(options), model, config.seed, resume=True)
            if path.exists():
                return dataclasses.replace(options, image_size=options.image_size or Run.open(path).data.image_size)
        epochs = None if self.training.epochs is None else config.epochs
        plan = plan_photos(options, network, config, epochs=epochs, minutes=self.minutes)
        height, width = plan.image_size
        count = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
        print_notes(
            [
                f"recipe photos: {model}, images of {height}x{width} pixels ({plan.reason}), {count}, "
                f"about {max(1, round(plan.seconds / 60))} min (--minutes, --image-size, --epochs change this)"
            ]
        )
        if "flip" in config.augment.split(","):
            print_notes(["images are mirrored at random; --augment policy,colour,erase where left and right matter"])
        return dataclasses.replace(options, image_size=plan.image_size)


def _pretrained_trunk() -> dict[str, Any]:
    """The switches of a pretrained trunk, if one is at hand."""
    from dualcaps.nn.trunks.timm import find_pretrained

    found = find_pretrained()
    if found is None:
        return {}
    name, file = found
    print_notes([f"recipe photos: trunk timm:{name}, pretrained; --trunk residual trains all from scratch"])
    return {"trunk": f"timm:{name}", "trunk_weights": file, "grid": 2}


def _loggers(names: Sequence[str]) -> "list[Callback]":
    """Callbacks by name, each text one name or several joined by commas; raises ConfigError for an unknown one."""
    from dualcaps.training.callbacks import LOGGERS

    wanted = dict.fromkeys(name.strip() for text in names for name in text.split(","))
    for name in wanted:
        if name not in LOGGERS:
            raise ConfigError(f"--logger: {unknown_name('logger', name, LOGGERS)}")
    return [LOGGERS[name]() for name in wanted]
