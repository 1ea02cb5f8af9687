"""Made-up records, as a grid of runs would leave them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

from dualcaps.config import to_json
from dualcaps.study.experiments import DataKey, Variant
from dualcaps.study.records import Epoch, Record


def variant_of(text: str) -> Variant:
    """A network from its words, such as "da-capsnet, gate additive"."""
    model, *words = text.split(", ")
    switches = {}
    for word in words:
        name, _, value = word.partition(" ")
        try:
            switches[name] = json.loads(value)
        except ValueError:
            switches[name] = value
    return Variant(model, tuple(switches.items()))


@functools.cache
def _configured(network: str, width: int) -> tuple[Variant, int, str]:
    """A network, its width and its configuration as JSON."""
    variant = variant_of(network)
    model = variant.configure((1, 28, 28), 10)
    model = dataclasses.replace(model, width=width) if width != 64 else model
    return variant, model.width, json.dumps(to_json(model))


def key_of(text: str, place: str | None = None) -> DataKey:
    """A data set from its words, such as "coil-20 (views)"."""
    source, _, split = text.partition(" (")
    return DataKey(source, split.rstrip(")"), place or "")


def record(
    network: str = "capsnet",
    data: str = "fashion-mnist",
    protocol: str = "paper",
    seed: int = 0,
    accuracies: Sequence[float] = (90.0,),
    *,
    official: bool | None = True,
    epochs: int | None = None,
    lr: float | None = None,
    parameters: int = 1000,
    error: float | None = 0.01,
    width: int = 64,
    place: str | None = None,
) -> Record:
    """A run with these accuracies (in %) after its epochs, the last one repeated up to `epochs`."""
    accuracies = [*accuracies, *[accuracies[-1]] * ((epochs or 0) - len(accuracies))]
    history = tuple(Epoch(n, 0.1, 0.9, a / 100, 1.5, 1000.0) for n, a in enumerate(accuracies, 1))
    best = max(history, key=lambda epoch: (epoch.accuracy, epoch.epoch))
    variant, width, model = _configured(network, width)
    lr = 1e-3 * min(1.0, 64 / width) if lr is None else lr
    training = {"epochs": len(history), "protocol": protocol, "seed": seed, "lr": lr}
    settings = {
        "model": json.loads(model),
        "training": training,
        "data": {"source": data.partition(" (")[0], "split": key_of(data).split or None, "split_seed": seed}
        | ({"place": place} if place else {}),
    }
    return Record(
        run=hashlib.sha256(f"{network} {data} {protocol} {len(history)} {lr} {seed} {place}".encode()).hexdigest()[:12],
        data=key_of(data, place),
        network=variant,
        protocol=protocol,
        seed=seed,
        epochs=len(history),
        precision="float32",
        parameters=parameters,
        selected_epoch=best.epoch,
        selection_accuracy=best.accuracy,
        test_accuracy=best.accuracy,
        reconstruction_error=error,
        training_images=100,
        validation_images=10,
        test_images=20,
        training_seconds=12.5,
        images_per_second=1000.0,
        official=official,
        sha256="0" * 64,
        device="cpu",
        processor="a processor",
        threads=2,
        torch="2.13.0",
        dualcaps="0.1.0",
        commit="abc",
        started="2026-01-01T00:00:00+00:00",
        settings=json.dumps(settings),
        history=history,
    )
