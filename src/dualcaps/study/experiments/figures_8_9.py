"""Figures 8 and 9: reconstructions after the first epochs."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CAPSNET, DA_CAPSNET, Experiment


@register_experiment("figures-8-9")
def figures_8_9() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "How do reconstructions of Fashion-MNIST look after each of the first 7 epochs?",
        "da-capsnet's have more classes, sharper features, less noise",
        (CAPSNET, DA_CAPSNET),
        (("fashion-mnist", ""),),
        hours=13,
    )
