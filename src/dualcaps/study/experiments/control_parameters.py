"""Control: parameters made even."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import ADDITIVE, CAPSNET, CONTROLLED, DA_CAPSNET, Experiment, Matched


@register_experiment("control-parameters")
def control_parameters() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Is it the attention, or the parameters? capsnet widened until it has as many as da-capsnet, and da-capsnet "
        "whose gates' layers are added instead of multiplied.",
        "not in the paper",
        (CAPSNET, Matched(CAPSNET, DA_CAPSNET), ADDITIVE, DA_CAPSNET),
        CONTROLLED,
        any_data=True,
        control=True,
        hours=110,
    )
