"""Table 1: the squash constant."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CAPSNET, Experiment, variant


@register_experiment("table-1")
def table_1() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Does the squash constant 0.5 do better than 1.0?",
        "CIFAR-10 +0.50, Fashion-MNIST +1.59, SVHN +0.58 points",
        (variant("capsnet", squash_constant=1.0), CAPSNET),
        (("cifar-10", ""), ("fashion-mnist", ""), ("svhn", "")),
        hours=55,
    )
