"""An experiment of one's own, with resumable runs and a report like the paper's tables.

dualcaps reproduce routing-methods --plugin examples/my_experiment.py --seeds 2 --epochs 3 --out runs/routing
"""

from pathlib import Path

from dualcaps import load_plugin, register_experiment
from dualcaps.study.experiments import Experiment, variant

load_plugin(Path(__file__).with_name("my_routing.py"))


@register_experiment("routing-methods")
def routing_methods() -> Experiment:
    """The card of this experiment."""
    return Experiment(
        asks="Does it matter how the votes are routed?",
        printed="not in the paper",
        networks=tuple(variant("capsnet", routing=method) for method in ("dynamic", "uniform", "mine")),
        data=(("digits", ""),),
        any_data=True,
        control=True,
        hours=1,
    )
