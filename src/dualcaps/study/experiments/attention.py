"""All five networks on every data set."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CNN, EVERYWHERE, FOUR, Experiment


@register_experiment("attention")
def attention() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "Does dual attention help, and which half of it? All five networks on every data set.",
        "da-capsnet ahead of capsnet on all six data sets, by 0.15 to 3.46 points",
        (CNN, *FOUR),
        EVERYWHERE,
        any_data=True,
        hours=175,
    )
