"""Control: routing iterations."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CONTROLLED, Experiment, variant


@register_experiment("control-routing")
def control_routing() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Does routing help? 1, 3 and 5 iterations; with 1 all couplings are equal.",
        "not in the paper",
        tuple(variant(name, iterations=count) for name in ("capsnet", "da-capsnet") for count in (1, 3, 5)),
        CONTROLLED,
        any_data=True,
        control=True,
        hours=43,
    )
