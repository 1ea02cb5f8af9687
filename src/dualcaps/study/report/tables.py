"""Formatting of numbers, names and tables."""

import math
import re
import statistics
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from dualcaps.study.experiments.card import CAPS_ATT, CAPSNET, CNN, CONV_ATT, DA_CAPSNET, DataKey, Variant
from dualcaps.study.records import Record, Records, copy_of
from dualcaps.study.statistics import Cell, Cells, Interval, accuracy, spread
from dualcaps.study.verdicts import Finding

_Key = TypeVar("_Key", DataKey, Variant)

NOT_RUN = "not run"
OFFICIAL = "official files"
PROTOCOLS = ("paper", "clean")
DATA = (
    *(DataKey(name) for name in ("mnist", "fashion-mnist", "cifar-10", "svhn", "smallnorb", "coil-20")),
    *(DataKey("coil-20", "views"), DataKey("digits")),
)
NETWORKS = (CNN, CAPSNET, CONV_ATT, CAPS_ATT, DA_CAPSNET, Variant("sabour-capsnet"))

_WIDEST = 100.0  # points, which is the scale


def conditions(table: Cells) -> list[tuple[DataKey, str]]:
    """Data sets and protocols with finished runs."""
    data_sets = in_order({data for data, _, _ in table}, DATA)
    pairs = {(data, protocol) for data, _, protocol in table}
    return [(data, protocol) for data in data_sets for protocol in PROTOCOLS if (data, protocol) in pairs]


def networks_of(table: Cells, data: DataKey, protocol: str) -> set[Variant]:
    """Networks with finished runs on a data set with a protocol."""
    return {network for where, network, how in table if (where, how) == (data, protocol)}


def in_order(keys: Iterable[_Key], known: Sequence[_Key]) -> list[_Key]:
    """Keys in a known order, followed by others by name."""
    return sorted(keys, key=lambda key: (known.index(key) if key in known else len(known), str(key)))


def named(data: DataKey, records: Records) -> str:
    """A data set's display name with a description of its files."""
    files = files_of(data, records)
    label = records.labels[data] if data in records.labels else str(data)
    return plain(label if files in ("", OFFICIAL) else f"{label}, {files}")


def files_of(data: DataKey, records: Records) -> str:
    """A description of a data set's files; "" if there are no official ones."""
    names = set()
    for record in records.runs:
        if record.data == data and record.official is not None:
            copy = copy_of(record, records.copies)
            names.add(OFFICIAL if record.official else copy.name if copy else "not the official files")
    return " and ".join(sorted(names, key=lambda name: (name != OFFICIAL, name)))


def plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>#!|&])", r"\\\1", text)


def mean_and_std(cell: Cell, of: Callable[[Record], float] = accuracy) -> str:
    """The mean over the seeds with its standard deviation and count."""
    values = list(cell.values(of).values())
    std = spread(values)
    return f"{statistics.fmean(values):.2f}" + (f" ± {std:.2f}" if std is not None else "") + f" (n = {len(values)})"


def points(interval: Interval, *, count: bool = True) -> str:
    """A difference in points with its interval: in bold if it excludes zero, left out if it is wider than the scale."""
    n = f", n = {interval.n}" if count else ""
    mean = f"{round(interval.mean, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0 turns -0.0 into 0.0
    if math.isinf(interval.low):
        return f"{mean} (n = {interval.n})"
    if interval.high - interval.low > _WIDEST:
        return f"{mean} (n too small, n = {interval.n})"
    alike = math.isclose(interval.low, interval.high, abs_tol=2e-3)  # records keep six digits
    bounds = "all alike" if alike else f"{interval.low:+.2f} to {interval.high:+.2f}".replace("-", "−")
    text = f"{mean} ({bounds}{n})"
    sure = interval.n > 2 and (interval.low > 0 or interval.high < 0)
    return f"**{text}**" if count and sure else text


def between(numbers: Sequence[int]) -> str:
    """The smallest and the largest of some numbers."""
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def verdict_text(finding: Finding) -> str:
    """A verdict with its reason."""
    return f"{finding.verdict}: {finding.reason}" if finding.reason else finding.verdict


def p_values(finding: Finding) -> tuple[str, str]:
    """The p-values of equality and difference, as they are and adjusted."""
    if finding.raw is None or finding.adjusted is None:
        return "", ""
    equal, different = (
        f"{_p(raw)} ({_p(adjusted)})" for raw, adjusted in zip(finding.raw[:2], finding.adjusted[:2], strict=True)
    )
    return equal, different


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def file_name(data: DataKey) -> str:
    """A data set's name as a unique part of a file name."""
    text = f"{data} [{data.place}]" if data.place else str(data)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain if data in DATA else f"{plain}-{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)
