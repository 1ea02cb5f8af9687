"""Table 2: the four networks."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import FOUR, Experiment


@register_experiment("table-2")
def table_2() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "What does each attention module bring, alone and together? Figs. 11 to 13 draw the same runs.",
        "da-capsnet over capsnet: CIFAR-10 +2.52, SVHN +3.46, Fashion-MNIST +1.57 points",
        FOUR,
        (("cifar-10", ""), ("svhn", ""), ("fashion-mnist", "")),
        hours=112,
    )
