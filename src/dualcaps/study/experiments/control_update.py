"""Control: how routing updates its logits."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CONTROLLED, Experiment, variant


@register_experiment("control-update")
def control_update() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Does it matter whether routing adds agreement to the logits (Eq. 7) or replaces them (the Keras example)?",
        "not in the paper",
        tuple(variant(name, update=how) for name in ("capsnet", "da-capsnet") for how in ("accumulate", "replace")),
        CONTROLLED,
        any_data=True,
        control=True,
        hours=28,
    )
