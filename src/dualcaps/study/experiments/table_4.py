"""Table 4: the CNN, the baseline and DA-CapsNet on six data sets."""

from dualcaps.registry import register_experiment
from dualcaps.study.experiments.card import CAPSNET, CNN, DA_CAPSNET, Experiment


@register_experiment("table-4")
def table_4() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        "How do the CNN, capsnet and da-capsnet compare on all six data sets?",
        "smallNORB 91.28, 96.93, 98.26 %; COIL-20 100, 98.38, 100 %; MNIST 100 % for all",
        (CNN, CAPSNET, DA_CAPSNET),
        (
            *(("mnist", ""), ("cifar-10", ""), ("svhn", "")),
            *(("fashion-mnist", ""), ("smallnorb", ""), ("coil-20", "")),
        ),
        hours=92,
    )
