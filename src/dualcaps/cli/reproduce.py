"""`dualcaps reproduce`."""

import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dualcaps.cli.display import GridDisplay, duration, print_left_out, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, parse_options
from dualcaps.config import PrecisionChoice, TrainConfig
from dualcaps.errors import ConfigError, display_path

if TYPE_CHECKING:
    from rich.table import Table

    from dualcaps.study.cluster import Cluster
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
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Train on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT; local starts one on this computer."""
    slurm: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME=VALUE…", help_behavior_hint="")] = None
    """Train as Slurm jobs, with options of submitit such as slurm_partition=gpu timeout_min=600."""
    cpus: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: 1)")] = 1
    """--ray, --slurm: CPUs of a run."""
    gpus: Annotated[float, tyro.conf.arg(help_behavior_hint="(default: 0)")] = 0.0
    """--ray, --slurm: GPUs of a run; with Ray 0.25 lets four runs share one."""
    store: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """--ray, --slurm: keep run folders at a URL that fsspec opens (s3://…), where the computers share no folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/reproduce")
    """Folder of the runs; with --ray or --slurm one that all computers see, unless there is a --store."""
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
        if self.ray is not None and self.slurm is not None:
            raise ConfigError("--ray and --slurm: choose one")
        on_cluster = self.ray is not None or self.slurm is not None
        if not on_cluster and (self.store is not None or self.gpus or self.cpus != 1):
            raise ConfigError("--store, --cpus and --gpus belong to --ray or --slurm")
        if on_cluster and self.jobs != 1:
            raise ConfigError("--jobs: the cluster decides how many runs are trained at once")
        if self.cpus < 1 or self.gpus < 0:
            raise ConfigError(f"--cpus must be at least 1 and --gpus at least 0, got {self.cpus} and {self.gpus:g}")
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
        options: dict[str, Any] = {"budget": self.budget, "data_dir": self.data_dir}
        cluster = self._cluster()
        with GridDisplay(len(planned), len(done), self.budget) as display:
            options["on_progress"] = display.on_progress
            if cluster is None:
                failures = reproduce(planned, self.out, jobs=self.jobs, **options)
            else:
                from dualcaps.study.cluster import reproduce_on

                failures = reproduce_on(cluster, planned, self.out, store=self.store, **options)
        finished = len(finished_records(planned, self.out))
        print(
            f"{finished:,} of {len(planned):,} runs done, {len(failures)} failed; dualcaps report "
            f"{display_path(self.out)} shows them"
        )
        if finished + len(failures) < len(planned):
            print("the same command continues with the others")
        if failures or missing:
            sys.exit(1)

    def _cluster(self) -> "Cluster | None":
        """Where to train, unless on this computer."""
        if self.ray is not None:
            from dualcaps.study.cluster import RayCluster

            return RayCluster(self.ray, cpus=self.cpus, gpus=self.gpus)
        if self.slurm is not None:
            from dualcaps.study.cluster import SlurmCluster

            options = parse_options(self.slurm, "--slurm")
            return SlurmCluster(self.out / ".slurm", cpus=self.cpus, gpus=self.gpus, options=options)
        return None


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
