"""Figure 14: reconstructions of COIL-20."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CAPSNET, DA_CAPSNET, Experiment


@register_experiment("figure-14")
def figure_14() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "How do reconstructions of COIL-20 look?",
        "da-capsnet's keep direction and texture better",
        (CAPSNET, DA_CAPSNET),
        (("coil-20", ""),),
        hours=0.5,
    )
