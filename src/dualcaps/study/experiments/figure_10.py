"""Figure 10: epochs to 100 % on MNIST."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import FOUR, Experiment


@register_experiment("figure-10")
def figure_10() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "After how many epochs does each network have all of MNIST's test images right?",
        "capsnet 25, +conv 16, +caps 13, da-capsnet 8 epochs",
        FOUR,
        (("mnist", ""),),
        hours=28,
    )
