"""The paper's tables and figures, and controls for them: one card a file."""

from dualcaps.registry import EXPERIMENTS, load_entry_points
from dualcaps.study.experiments import attention as attention
from dualcaps.study.experiments import control_caps_attention as control_caps_attention
from dualcaps.study.experiments import control_gates as control_gates
from dualcaps.study.experiments import control_parameters as control_parameters
from dualcaps.study.experiments import control_routing as control_routing
from dualcaps.study.experiments import control_update as control_update
from dualcaps.study.experiments import figure_10 as figure_10
from dualcaps.study.experiments import figure_14 as figure_14
from dualcaps.study.experiments import figures_8_9 as figures_8_9
from dualcaps.study.experiments import table_1 as table_1
from dualcaps.study.experiments import table_2 as table_2
from dualcaps.study.experiments import table_4 as table_4
from dualcaps.study.experiments.card import DataKey as DataKey
from dualcaps.study.experiments.card import Experiment as Experiment
from dualcaps.study.experiments.card import Matched as Matched
from dualcaps.study.experiments.card import Variant as Variant
from dualcaps.study.experiments.card import as_mapping
from dualcaps.study.experiments.card import variant as variant

_IN_ORDER = (
    *("table-1", "table-2", "table-4", "figures-8-9", "figure-10", "figure-14", "attention"),
    *("control-parameters", "control-gates", "control-caps-attention", "control-routing", "control-update"),
)


def experiments() -> dict[str, Experiment]:
    """All registered experiments by name: the paper's, the controls, then those of plug-ins."""
    load_entry_points()
    cards = as_mapping(EXPERIMENTS)
    return {name: cards[name] for name in (*_IN_ORDER, *(name for name in cards if name not in _IN_ORDER))}
