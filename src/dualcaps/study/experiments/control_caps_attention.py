"""Control: other readings of Caps-Attention."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CONTROLLED, DA_CAPSNET, Experiment, variant


@register_experiment("control-caps-attention")
def control_caps_attention() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Which reading of Caps-Attention? A gate for each number, for each vote, or the same layers for all votes.",
        "not in the paper, which gives no widths",
        (DA_CAPSNET, variant("da-capsnet", caps_attention="capsule"), variant("da-capsnet", caps_attention="shared")),
        CONTROLLED,
        any_data=True,
        control=True,
        hours=24,
    )
