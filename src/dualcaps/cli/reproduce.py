"""`dualcaps reproduce`."""

import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dualcaps.cli.display import GridDisplay, duration, print_left_out, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles
from dualcaps.config import PrecisionChoice, TrainConfig
from dualcaps.errors import ConfigError, display_path

if TYPE_CHECKING:
    from rich.table import Table

    from dualcaps.study.plan import PlannedRun
    from dualcaps.study.scheduler import Clock


@dataclass(frozen=True)
class Reproduce:
    """Run the paper's experiments, with several seeds and controls; stopped runs are resumed."""

    experiments: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[EXPERIMENT…]", help_behavior_hint="(default: all)"),
    ] = ()
    """Which ones; --list describes them."""
    seeds: int = 5
    """How many seeds, from 0; they are the splits' seeds too."""
    epochs: int = 100
    """Epochs of each run; the paper trained for 100."""
    datasets: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help_behavior_hint="(default: the experiments' own)", metavar="DATA…")
    ] = None
    """Only these data sets; or paths of your own images, for `attention` and the controls."""
    protocols: tuple[Literal["clean", "paper"], ...] = ("clean", "paper")
    """clean selects the epoch on held-out training images, paper on the test images."""
    budget: Annotated[
        float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="(default: until all is done)")
    ] = None
    """Minutes to spend; the most informative runs come first, and the same command continues later."""
    jobs: int = 1
    """Runs at once; on the CPU they share the cores."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/reproduce")
    """Folder of the runs."""
    data_dir: DataDir = None
    precision: PrecisionChoice = "auto"
    """Number type of the layers; float32 on the CPU gives the same results each time."""
    device: Device = "auto"
    list: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Only list the experiments: the question and the paper's answer."""
    plan: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Only show the runs, which are done, and the time that the others will take; fetches nothing."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Plan, show the plan, train what is missing."""
        if self.list:
            _list_experiments()
            return
        if self.datasets == ():
            raise ConfigError("--datasets: name at least one, or leave the option out")
        training = TrainConfig(epochs=self.epochs, precision=self.precision, device=self.device)

        from dualcaps.study.plan import plan_runs
        from dualcaps.study.scheduler import Clock, check_limits, finished_records, note_failures, reproduce

        check_limits(self.out, self.jobs, self.budget)
        planned, missing = plan_runs(
            self.experiments,
            seeds=self.seeds,
            data_sets=self.datasets or (),
            protocols=self.protocols,
            training=training,
            data_dir=self.data_dir,
            download=not self.plan,
        )
        if not planned:
            raise ConfigError(f"nothing to run: {'; '.join(dict.fromkeys(failure.reason for failure in missing))}")
        done = finished_records(planned, self.out)
        stdout().print(_plan_table(planned, done, Clock(planned, done, self.jobs)))
        print_left_out(missing)
        if self.plan:
            return
        note_failures(self.out, missing)
        with GridDisplay(len(planned), len(done), self.budget) as display:
            failures = reproduce(
                planned,
                self.out,
                jobs=self.jobs,
                budget=self.budget,
                data_dir=self.data_dir,
                on_progress=display.on_progress,
            )
        finished = len(finished_records(planned, self.out))
        print(
            f"{finished:,} of {len(planned):,} runs done, {len(failures)} failed; dualcaps report "
            f"{display_path(self.out)} shows them"
        )
        if finished + len(failures) < len(planned):
            print("the same command continues with the others")
        if failures or missing:
            sys.exit(1)


def _list_experiments() -> None:
    from dualcaps.registry import EXPERIMENTS
    from dualcaps.study.experiments import experiments
    from dualcaps.study.experiments.card import data_key

    console = stdout()
    for name, experiment in experiments().items():
        origin = EXPERIMENTS[name].origin
        source = "" if origin == "dualcaps" else f"  from      {display_path(origin)}\n"
        console.print(f"{name}\n{source}  question  {experiment.asks}\n  paper     {experiment.printed}")
        console.print(f"  networks  {'; '.join(map(str, experiment.networks))}")
        console.print(f"  data      {', '.join(str(data_key(*place)) for place in experiment.data)}")
        console.print(f"  command   dualcaps reproduce {name}")
        console.print(f"  time      about {experiment.hours:g} hours on 2 CPU cores with --jobs 2\n")
    console.print("--plan estimates the time on this machine, with fewer seeds or epochs too.")


def _plan_table(planned: "Sequence[PlannedRun]", done: "Container[PlannedRun]", clock: "Clock") -> "Table":
    from dualcaps.models import describe

    columns = table(
        *("data", "network", "protocols", "epochs", "seeds", "done", "time left"),
        right=("epochs", "seeds", "done", "time left"),
    )
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in planned:
        groups.setdefault((str(run.where), describe(run.network)), []).append(run)

    def progress(members: "Sequence[PlannedRun]") -> tuple[str, str]:
        missing = [run for run in members if run not in done]
        left = f"about {duration(clock.left(dict.fromkeys(missing, 0)))}" if missing else ""
        return f"{len(members) - len(missing)} of {len(members)}", left

    for (where, network), members in groups.items():
        columns.add_row(
            display_path(where),
            network,
            ", ".join(dict.fromkeys(run.training.protocol for run in members)),
            str(members[0].training.epochs),
            str(len({run.training.seed for run in members})),
            *progress(members),
        )
    columns.add_row("all", "", "", "", "", *progress(planned))
    return columns
