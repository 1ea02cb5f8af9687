"""Control: other gates."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import ADDITIVE, CONTROLLED, DA_CAPSNET, Experiment, variant


@register_experiment("control-gates")
def control_gates() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Is the tanh gate with a residual better than squeeze and excitation's sigmoid, or than its layers added?",
        'not in the paper, which says that tanh is used where "mostly softmax or sigmoid" is',
        (DA_CAPSNET, variant("da-capsnet", gate="sigmoid"), ADDITIVE),
        CONTROLLED,
        any_data=True,
        control=True,
        hours=23,
    )
