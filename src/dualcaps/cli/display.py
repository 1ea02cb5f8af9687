"""Output of the command line: consoles that print any name, tables, notes, the display of a grid of runs."""

import codecs
import datetime
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dualcaps.errors import display_path

if TYPE_CHECKING:
    from dualcaps.runs.run import Run
    from dualcaps.study.plan import PlannedRun
    from dualcaps.study.scheduler import Progress

_MOST_NAMES = 3
_PLAIN = {"·": ".", "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "’": "'", "━": "-", "╸": "-", "╺": "-"}


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    r"""Typography in ASCII, undecodable bytes of file names as \xNN, other characters as \uNNNN."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or _escaped(c) for c in characters), error.end


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def make_printable(*streams: TextIO) -> None:
    """Make streams print any text: characters that their encoding lacks are replaced, see `_PLAIN`."""
    codecs.register_error("dualcaps.printable", _replace_unencodable)
    for stream in streams:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="dualcaps.printable")


def stdout() -> Console:
    """A console for standard output; lines are not wrapped unless it is a terminal."""
    console = _console()
    if not console.is_terminal:
        console.width = 1000
    return console


def stderr() -> Console:
    """A console for standard error, where progress is shown."""
    return _console(stderr=True)


def progress_bar() -> Bars:
    """A progress bar on standard error, shown on a terminal only and removed at the end."""
    return Bars(console=stderr(), disable=not sys.stderr.isatty(), transient=True)


def describe_run(run: "Run") -> str:
    """A run's network, data and test accuracy in one line."""
    accuracy = f", test accuracy {percent(run.result['test_accuracy'])}" if run.result else ""
    return f"{run.model.name} on {run.data.source or 'arrays'}{accuracy}"


def _console(**options: Any) -> Console:
    return Console(highlight=False, markup=False, emoji=False, legacy_windows=False, **options)


def table(*headings: str, right: Iterable[str] = (), fold: bool = False) -> Table:
    """A table without lines.

    Args:
        *headings: the columns.
        right: those aligned at the right.
        fold: whether long values are wrapped instead of truncated.
    """
    columns, right = Table(box=None, pad_edge=False), set(right)
    for heading in headings:
        columns.add_column(
            heading, justify="right" if heading in right else "left", overflow="fold" if fold else "ellipsis"
        )
    return columns


def print_json(content: Any) -> None:
    """Print JSON in ASCII, so that any name can be printed."""
    print(json.dumps(content, indent=2))


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def print_notes(notes: Iterable[str]) -> None:
    """Print a line for each note, on standard error; of several processes the first one does."""
    for note in notes if is_first_process() else ():
        print(f"note: {' '.join(note.splitlines())}", file=sys.stderr)


def print_left_out(failures: Iterable[tuple[str, str]]) -> None:
    """Print what was left out, on standard error, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in failures:
        names.setdefault(reason, []).append(name)
    for reason, left_out in names.items():
        why = reason.removeprefix(f"{left_out[0]}: ")
        others = f" and {len(left_out) - _MOST_NAMES:,} more" if len(left_out) > _MOST_NAMES else ""
        print(f"left out: {'; '.join(left_out[:_MOST_NAMES])}{others}: {why}", file=sys.stderr)


def shorten_names(names: Sequence[str], most: int) -> list[str]:
    """Names cut to `most` characters so that all differ still.

    Example:
        >>> shorten_names(["cat", "wooden spoon", "wooden fork"], 8)
        ['cat', 'wood…oon', 'wood…ork']
        >>> shorten_names(["golden retriever", "apple"], 8)
        ['golden …', 'apple']
    """
    tail = (most - 1) // 2
    ends = [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
    middles = [name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}" for name in names]
    short = [end if ends.count(end) == 1 else middle for end, middle in zip(ends, middles, strict=True)]
    counts = Counter(short)
    numbers = [f"…{number}" for number in range(len(names))]
    return [
        text if counts[text] == 1 else f"{text[: max(0, most - len(number))]}{number}"
        for text, number in zip(short, numbers, strict=True)
    ]


def percent(ratio: float) -> str:
    """A ratio in percent; NaN as a dash."""
    return "–" if ratio != ratio else f"{100 * ratio:.2f} %"


def duration(seconds: float) -> datetime.timedelta:
    """Seconds, rounded, in hours, minutes and seconds."""
    return datetime.timedelta(seconds=round(seconds))


def validation_or_test(line: Mapping[str, Any]) -> str:
    """An epoch's accuracy on the part that epochs are selected on."""
    name = "validation" if "validation_accuracy" in line else "test"
    return f"{name} {100 * line[f'{name}_accuracy']:.2f} %"


class GridDisplay:
    """Print a line per finished run and, on a terminal, progress bars for the grid and its runs, on standard error.

    Args:
        total: number of runs of the grid.
        done: number of finished runs.
        budget: minutes after which it stops.
    """

    def __init__(self, total: int, done: int, budget: float | None) -> None:
        self._console = stderr()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._budget, self._started = budget, time.monotonic()
        self._all = self._bars.add_task("runs", total=total, completed=done, status=f"{done} of {total}")
        self._total, self._done, self._ended = total, done, done
        self._in_progress: dict[PlannedRun, TaskID] = {}
        self._last: dict[PlannedRun, dict[str, Any]] = {}

    def __enter__(self) -> "GridDisplay":
        if self._console.is_terminal:  # otherwise rich before 14.3 writes an empty line
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def on_progress(self, progress: "Progress") -> None:
        """Show a run that started, finished an epoch or ended."""
        run, line = progress.run, progress.line
        if progress.ended:
            self._bars.remove_task(self._in_progress.pop(run))
            self._done += progress.failed is None
            self._ended += 1
            text = f"{self._ended}/{self._total}  {display_path(run.name)}: {self._outcome(progress)}"
            self._console.print(text, soft_wrap=True)
        elif line is None:
            epochs = run.training.epochs
            self._in_progress[run] = self._bars.add_task(display_path(run.name), total=epochs, status="starting")
        else:
            self._last[run] = line
            status = f"epoch {line['epoch']}, {validation_or_test(line)}, {line['images_per_second']:,.0f} images/s"
            self._bars.update(self._in_progress[run], completed=line["epoch"], status=status)
        until = ""
        if self._budget is not None:
            rest = max(0.0, 60 * self._budget - (time.monotonic() - self._started))
            until = f", {duration(rest)} of the budget"
        status = f"{self._done} of {self._total}, {duration(progress.seconds_left)} left{until}"
        self._bars.update(self._all, completed=self._done, status=status)

    def _outcome(self, progress: "Progress") -> str:
        if progress.failed is not None:
            return f"failed: {progress.failed}"
        last = self._last.get(progress.run)
        if last is None:
            return "done"
        return f"{validation_or_test(last)} after the last epoch, {last['images_per_second']:,.0f} images/s"
