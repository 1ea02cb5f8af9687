"""What the runs say, beside what the paper printed: Markdown, one HTML page without links to the outside, CSV.

`write_report` makes everything from `Records`, so that committed records give the same files again.
"""

import base64
import dataclasses
import html
import math
import re
import shutil
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualcaps.runs import run as runs
from dualcaps.study import paper
from dualcaps.study.statistics import (
    RULE,
    Cell,
    Cells,
    Finding,
    Interval,
    accuracy,
    cells,
    difference,
    epochs_to,
    first_five,
    judge,
    spread,
)
from dualcaps.errors import RunError
from dualcaps.study.paper import Printed
from dualcaps.plots import accuracy_bands, png, strip_rows, svg
from dualcaps.study.records import (
    COPIES,
    RUNS,
    Record,
    Records,
    name_of,
    read_copies,
    read_records,
    write_csv,
    write_records,
)

FINDINGS = "findings.csv"

_DATA = ("mnist", "fashion-mnist", "cifar-10", "svhn", "smallnorb", "coil-20", "coil-20 (views)", "digits")
_NETWORKS = ("cnn", "capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet", "sabour-capsnet")
_THRESHOLDS = {
    "mnist": (98.0, 99.0, 99.5, 100.0),
    "fashion-mnist": (80.0, 85.0, 90.0, 92.0),
    "cifar-10": (50.0, 60.0, 70.0, 75.0),
    "svhn": (50.0, 80.0, 90.0, 94.0),
    "smallnorb": (80.0, 85.0, 90.0, 93.0),
    "coil-20": (90.0, 95.0, 99.0, 100.0),
    "digits": (90.0, 95.0, 98.0, 99.0),
}
_OTHER_THRESHOLDS = (50.0, 80.0, 90.0, 95.0)
_FIGURES = {"cifar-10": "Fig. 11", "fashion-mnist": "Fig. 12", "svhn": "Fig. 13"}
_EARLY, _EARLY_FIGURES = "fashion-mnist", (("Fig. 8", "capsnet"), ("Fig. 9", "da-capsnet"))
_PROTOCOLS = ("paper", "clean")
_NOT_RUN = "not run"
_MOST_NAMES = 5
_OFFICIAL = "official files"


class Written(NamedTuple):
    """A report.

    page: the file to open.
    left_out: runs and data sets that are not in it, and why.
    """

    page: Path
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Picture:
    """A file of the report and what it shows."""

    name: str
    content: bytes
    caption: str


def write_report(sources: Sequence[str | Path], out: str | Path) -> Written:
    """Write the report on some runs.

    Into `out` go `index.html`, which holds everything; `RESULTS.md` with `figures/`; `findings.csv`, a
    line for each printed number; and the records themselves (`runs.csv`, `epochs.csv`,
    `failures.csv`, `copies.csv`, `strips/`), from which the same report can be made again.

    Args:
        sources: run folders, folders of them, or folders of records. What `out/copies.csv` says of the
            data sets' files counts too.
        out: where to write: a new or empty folder, or one of a former report or of records, which is
            replaced.

    Returns:
        The page, `out/index.html`, and what was left out of it: what failed, is not finished or damaged.

    Raises:
        RunError: no finished run, damaged records or pictures, or `out` holds something else.
        OSError: something cannot be written.
    """
    records, out = read_records(sources), Path(out)
    if not records.runs:
        found = "".join(f" ({name}: {reason})" for name, reason in records.failures[:1])
        where = ", ".join(map(str, sources))
        raise RunError(f"{where}: no finished run{found}: train with dualcaps reproduce or train first")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file: choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_file() for name in (FINDINGS, RUNS, COPIES)):
        raise RunError(f"{out}: holds something else than a report: choose a new folder with --out")
    records = dataclasses.replace(records, copies=read_copies(out) | {**records.copies})
    table = cells(records)
    findings = [judge(printed, table, records.copies) for printed in paper.PRINTED]
    text, pictures = _compose(records, table, findings)
    page = _page(text, pictures)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    _keep_strips(records, table, out)
    write_records(records, out)
    for picture in pictures:
        runs.write_bytes(out / "figures" / picture.name, picture.content)
    made = {picture.name for picture in pictures}
    for old in (out / "figures").iterdir():
        if old.name not in made and re.fullmatch(r"(curves|fig|reconstructions)-.*\.(svg|png)", old.name):
            old.unlink()
    _write_findings(out / FINDINGS, findings, records)
    runs.write_bytes(out / "RESULTS.md", text.encode())
    runs.write_bytes(out / "index.html", page.encode())
    return Written(out / "index.html", records.failures)


def _compose(records: Records, table: Cells, findings: Sequence[Finding]) -> tuple[str, list[_Picture]]:
    """The whole report as Markdown, and its pictures."""
    pictures: list[_Picture] = []
    first = [_opening(records, findings), _accuracies(records, table), _attention(records, table)]
    printed = [
        f"## The rule\n\n{RULE}",
        *(_printed_table(where, findings, records, table) for where in ("Table 1", "Table 2", "Table 4")),
    ]
    ours = [
        _epochs_needed(records, findings, table),
        _curves(records, table, pictures),
        _reconstructions(records, table, pictures),
        _controls(records, table),
        _protocols(records, table),
        _everything(records, table),
        _provenance(records),
    ]
    sections = [*first, *ours, *printed] if _nothing_printed_was_run(findings) else [*first, *printed, *ours]
    return "\n\n".join([*sections, _decisions()]) + "\n", pictures


def _nothing_printed_was_run(findings: Sequence[Finding]) -> bool:
    return all(finding.verdict == _NOT_RUN for finding in findings)


def _opening(records: Records, findings: Sequence[Finding]) -> str:
    finished = f"{len(records.runs):,} finished runs"
    units = (
        "Accuracies are of the test set, in %, mean ± standard deviation over n seeds; differences are in percentage "
        "points with their 95 % interval."
    )
    if _nothing_printed_was_run(findings):
        return (
            f"# Networks compared\n\n**{finished}**, none of them on a data set of which the paper of `da-capsnet` "
            f"prints a number: its tables below are marked “not run”. {units}"
        )
    counts = Counter(finding.verdict for finding in findings)
    verdicts = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in ("reproduced", "not reproduced", "inconclusive", _NOT_RUN)
    )
    lines = [
        "# DA-CapsNet, run again",
        'The numbers that Huang & Zhou, "DA-CapsNet: dual attention mechanism capsule network" (Scientific Reports '
        "10, 11383, 2020) print of their results, with ours beside them. The authors published no code; where the text "
        "is silent, the numbered decisions at the end say what was done.",
        f"**{finished}; of {len(findings)} printed numbers: {verdicts}.** {units}",
    ]
    return "\n\n".join(lines)


def _accuracies(records: Records, table: Cells) -> str:
    """The networks by their names, without switches, side by side."""
    networks = _in_order({network for _, network, _ in table if ", " not in network}, _NETWORKS)
    rows = []
    for data, protocol in _conditions(table):
        ours = [table.get((data, network, protocol)) for network in networks]
        if epochs := {cell.epochs for cell in ours if cell}:
            numbers = [_mean(cell) if cell else _NOT_RUN for cell in ours]
            rows.append([_named(data, records), protocol, _between(sorted(epochs)), *numbers])
    text = (
        "## Accuracy\n\nOn the test images, in %. Protocol `paper` trains on all training images and selects the epoch "
        "on the test images, as the paper did; `clean` selects it on a tenth of the training images, held out."
    )
    head = ["data", "protocol", "epochs", *networks]
    lines = [text, _markdown(head, rows) if rows else f"Networks without switches: {_NOT_RUN}."]
    if stuck := [record for cell in table.values() for record in cell.records if _at_chance(record)]:
        names = [f"{_plain(name_of(record))} ({100 * record.test_accuracy:.2f} %)" for record in stuck[:_MOST_NAMES]]
        others = f" and {len(stuck) - _MOST_NAMES:,} more" if len(stuck) > _MOST_NAMES else ""
        lines.append(f"Runs that never got better than chance count like all others: {'; '.join(names)}{others}.")
    return "\n\n".join(lines)


def _at_chance(record: Record) -> bool:
    """Whether a run's best epoch is right hardly more often than one in as many images as there are classes.

    One that always answers the commonest of classes that are very uneven is not told from one that learned.
    """
    return max(epoch.accuracy for epoch in record.history) < 1.2 / record.asked["model"]["num_classes"]


def _attention(records: Records, table: Cells) -> str:
    """Gains over the baseline, and with parameters made even, from above and from below."""
    rows = []
    for data, protocol in _conditions(table):
        baseline = table.get((data, "capsnet", protocol))
        widened = _widened(table, data, protocol)
        da = table.get((data, "da-capsnet", protocol))
        added = table.get((data, "da-capsnet, gate additive", protocol))
        small = table.get((data, "da-capsnet, caps_attention shared", protocol))
        if not baseline:
            continue
        gains = [
            _gain(table.get((data, network, protocol)), baseline)
            for network in ("capsnet-conv-att", "capsnet-caps-att", "da-capsnet")
        ]
        even = (_gain(da, widened), _gain(da, added), _gain(small, baseline))
        rows.append([_named(data, records), protocol, str(baseline.epochs), *gains, *even])
    head = [
        *("data", "protocol", "epochs", "Conv-Attention", "Caps-Attention", "both"),
        *("both, over widened capsnet", "both, over added", "both, gates shared"),
    ]
    text = (
        "## Does dual attention help?\n\nGains over `capsnet`, in points. Caps-Attention brings millions of parameters "
        "with it, so the last three columns make them even, which the paper did not: `da-capsnet` against `capsnet` "
        "widened until it has as many; `da-capsnet` against the same layers without attention, what they answer being "
        "added to the votes and channels instead of multiplied with them; and `da-capsnet` whose votes share the "
        "layers of their gates, which has hardly more than `capsnet`, against `capsnet`. An interval of three seeds or "
        "more that does not hold zero is in bold; “all alike” means that each seed gives the same difference, as "
        "happens where test images are few."
    )
    return f"{text}\n\n{_markdown(head, rows) if rows else f'Gains: {_NOT_RUN}.'}"


def _gain(ours: Cell | None, baseline: Cell | None) -> str:
    if ours is None or baseline is None:
        return _NOT_RUN
    return _points(difference(ours.values(accuracy), baseline.values(accuracy)))


def _widened(table: Cells, data: str, protocol: str) -> Cell | None:
    """`capsnet` with the parameters of `da-capsnet`, within a hundredth."""
    if not (da := table.get((data, "da-capsnet", protocol))):
        return None
    wanted = da.records[0].parameters
    for (where, network, how), cell in sorted(table.items()):
        alike = (where, how) == (data, protocol) and re.fullmatch(r"capsnet, width \d+", network)
        if alike and abs(cell.records[0].parameters - wanted) < wanted / 100:
            return cell
    return None


def _printed_table(where: str, findings: Sequence[Finding], records: Records, table: Cells) -> str:
    titles = {
        "Table 1": "Table 1: the squash constant",
        "Table 2": "Table 2: the four networks",
        "Table 4": "Table 4: smallNORB, COIL-20, MNIST",
    }
    rows = []
    for finding in findings:
        printed = finding.printed
        if printed.where == where:
            columns = [_ours(table, printed, protocol) for protocol in _PROTOCOLS]
            rows.append(
                [
                    _named(printed.data, records),
                    _what(printed),
                    f"{printed.value:+.2f}" if "gain" in printed.quantity else f"{printed.value:.2f}",
                    *columns,
                    _NOT_RUN if finding.difference is None else _points(finding.difference, count=False),
                    str(finding.epochs or ""),
                    _verdict(finding),
                ]
            )
    head = [
        *("data", "network", "printed", "ours, `paper`", "ours, `clean`"),
        *("ours − printed", "epochs", "verdict"),
    ]
    missing = (
        "\n\nOur copy of the paper's text lacks the numbers of the CNN on CIFAR-10, SVHN and Fashion-MNIST."
        if where == "Table 4"
        else ""
    )
    return f"## {titles[where]}\n\n{_markdown(head, rows)}{missing}"


def _what(printed: Printed) -> str:
    if printed.quantity == "accuracy":
        return printed.network
    over = f"{printed.network} over {printed.baseline}"
    return f"{over}, mean of epochs 1 to 5" if printed.quantity == "first-five gain" else over


def _ours(table: Cells, printed: Printed, protocol: str) -> str:
    cell = table.get((printed.data, printed.network, protocol))
    baseline = table.get((printed.data, printed.baseline, protocol))
    of = first_five if printed.quantity == "first-five gain" else accuracy
    if not cell or (printed.baseline and not baseline) or (of is first_five and cell.epochs < 5):
        return _NOT_RUN
    if baseline:
        return _points(difference(cell.values(of), baseline.values(of)))
    return _mean(cell, of)


def _epochs_needed(records: Records, findings: Sequence[Finding], table: Cells) -> str:
    text = [
        "## How fast the networks learn (Fig. 10 and Table 4)",
        "The paper counts the epochs until every test image of MNIST is right:",
    ]
    rows = []
    for finding in findings:
        if finding.printed.quantity == "epochs to 100 %":
            ours = _NOT_RUN if finding.verdict == _NOT_RUN else "not by all"
            ours = f"{finding.ours.mean:.1f} (n = {finding.ours.n})" if finding.ours else ours
            printed = f"{finding.printed.value:.0f}"
            rows.append([finding.printed.network, printed, ours, str(finding.epochs or ""), _verdict(finding)])
    text.append(_markdown(["network", "printed, epochs to 100 %", "ours", "epochs trained", "verdict"], rows))
    text.append(
        "The first epoch that reaches a threshold on the part that the epoch is selected on (the test set with "
        "protocol `paper`, held-out training images with `clean`): mean over the seeds that reach it, and how many do."
    )
    for data in _in_order({data for data, _, _ in table}, _DATA):
        thresholds = _THRESHOLDS.get(data.split(" (")[0], _OTHER_THRESHOLDS)
        rows = []
        for protocol in _PROTOCOLS:
            for network in _in_order(_networks(table, data, protocol), _NETWORKS):
                cell = table[data, network, protocol]
                reached = [_reached(cell, threshold) for threshold in thresholds]
                early = _mean(cell, first_five) if cell.epochs >= 5 else "–"
                rows.append([protocol, network, str(cell.epochs), *reached, early])
        head = ["protocol", "network", "epochs", *(f"{t:g} %" for t in thresholds), "mean of epochs 1 to 5"]
        text += [f"### {_named(data, records)}", _markdown(head, rows)]
    return "\n\n".join(text)


def _reached(cell: Cell, threshold: float) -> str:
    epochs = [epoch for record in cell.records if (epoch := epochs_to(record, threshold)) is not None]
    if not epochs:
        return "–"
    return f"{statistics.fmean(epochs):.1f} ({len(epochs)} of {len(cell.records)})"


def _curves(records: Records, table: Cells, pictures: list[_Picture]) -> str:
    text = [
        "## Accuracy against epoch (Figs. 11 to 13)",
        "Mean over the seeds, the band is one standard deviation to each side. Protocol `paper`: accuracy on the test "
        "set, as the paper drew it; `clean`: on held-out training images.",
    ]
    for data, figure in _FIGURES.items():
        if not any(d == data for d, _, _ in table):
            text.append(f"{figure} ({data}): {_NOT_RUN}.")
    for data, protocol in _conditions(table):
        networks = _in_order(_networks(table, data, protocol), (*_NETWORKS[1:5], "cnn"))
        curves = {
            network: np.array([[100 * e.accuracy for e in r.history] for r in table[data, network, protocol].records])
            for network in networks
            if network in _NETWORKS
        }
        if not curves:
            continue
        part = "test set" if protocol == "paper" else "held-out training images"
        counts = {len(values) for values in curves.values()}
        n = f"{counts.pop()}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        number = f"{_FIGURES[data]}: " if data in _FIGURES and protocol == "paper" else ""
        caption = f"{number}{_named(data, records)}, accuracy on the {part}, protocol {protocol}, n = {n}"
        name = f"curves-{_file_name(data)}-{protocol}.svg"
        pictures.append(_Picture(name, svg(accuracy_bands(curves)), caption))
        text.append(_image(pictures[-1]))
    return "\n\n".join(text)


def _reconstructions(records: Records, table: Cells, pictures: list[_Picture]) -> str:
    text = [
        "## Reconstructions (Figs. 8, 9 and 14)",
        "What the decoder makes of the pose of a test image's predicted class. How far that is from the image, over "
        "all test images: root of the mean squared difference, in grey levels of 255.",
        _errors(records, table),
        "Test images, one of each class, ten at the most:",
    ]
    for figure, network in _EARLY_FIGURES:
        record = _drawn(records, table, _EARLY, network)
        if record is None:
            text.append(f"{figure} ({_EARLY}, {network}): {_NOT_RUN}.")
            continue
        folder = records.strips[record.run]
        epochs = sorted((int(f.stem.partition("-")[2]), f) for f in folder.glob("epoch-*.png"))
        rows = {"input": folder / "input.png"} | {f"epoch {number}": file for number, file in epochs}
        caption = f"{figure}: Fashion-MNIST, {network} after each of the first epochs, {_which(record)}"
        name = f"fig-{figure.removeprefix('Fig. ')}-{network}.png"
        pictures.append(_Picture(name, png(strip_rows(_strips(rows))), caption))
        text.append(_image(pictures[-1]))
    others = [data for data in _in_order({data for data, _, _ in table}, _DATA) if data != "coil-20"]
    for data, figure in (("coil-20", "Fig. 14"), *((data, "") for data in others)):
        drawn = _drawn_alike(records, table, data)
        if not drawn:
            if figure:
                text.append(f"{figure} ({data}): {_NOT_RUN}.")
            continue
        folders = {network: records.strips[record.run] for network, record in drawn.items()}
        rows = {"input": next(iter(folders.values())) / "input.png"}
        rows |= {network: folder / "selected.png" for network, folder in folders.items()}
        label = f"{figure}: {_named(data, records)}" if figure else _named(data, records)
        caption = f"{label}, selected epoch, {_which(next(iter(drawn.values())))}"
        pictures.append(_Picture(f"reconstructions-{_file_name(data)}.png", png(strip_rows(_strips(rows))), caption))
        text.append(_image(pictures[-1]))
    return "\n\n".join(text)


def _errors(records: Records, table: Cells) -> str:
    rows = []
    for data, protocol in _conditions(table):
        drawing = {
            network: cell
            for network in _NETWORKS[1:5]
            if (cell := table.get((data, network, protocol))) and all(r.reconstruction_error for r in cell.records)
        }
        if not drawing:
            continue
        errors = [_mean(drawing[n], _grey_levels) if n in drawing else _NOT_RUN for n in _NETWORKS[1:5]]
        gap = _NOT_RUN
        if "capsnet" in drawing and "da-capsnet" in drawing:
            gap = _points(difference(*(drawing[n].values(_grey_levels) for n in ("da-capsnet", "capsnet"))))
        rows.append([_named(data, records), protocol, *errors, gap])
    head = ["data", "protocol", *_NETWORKS[1:5], "da-capsnet less capsnet"]
    return _markdown(head, rows) if rows else f"Errors: {_NOT_RUN}."


def _grey_levels(record: Record) -> float:
    return 255 * math.sqrt(record.reconstruction_error or math.nan)


def _drawn(records: Records, table: Cells, data: str, network: str) -> Record | None:
    """The run whose reconstructions are shown: the first seed's, of the paper's protocol if there is one."""
    for protocol in _PROTOCOLS:
        if cell := table.get((data, network, protocol)):
            for record in cell.records:
                if (folder := records.strips.get(record.run)) and (folder / "selected.png").is_file():
                    return record
    return None


def _drawn_alike(records: Records, table: Cells, data: str) -> dict[str, Record]:
    """The runs of `capsnet` and `da-capsnet` whose reconstructions are shown together, which are of the same images."""
    drawn = {n: r for n in ("capsnet", "da-capsnet") if (r := _drawn(records, table, data, n))}
    first = next(iter(drawn.values()), None)
    return {n: r for n, r in drawn.items() if first and (r.protocol, r.seed) == (first.protocol, first.seed)}


def _which(record: Record) -> str:
    return f"protocol {record.protocol}, {record.epochs} epochs, seed {record.seed}"


def _strips(files: dict[str, Path]) -> dict[str, np.ndarray]:
    strips = {}
    for name, file in files.items():
        try:
            strips[name] = np.asarray(Image.open(file).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise RunError(f"{file}: cannot be read ({error}): remove the run's folder and train it again") from error
    return strips


def _keep_strips(records: Records, table: Cells, out: Path) -> None:
    """Copy the reconstructions that the report shows next to the records, and drop those that one showed before."""
    shown = {r.run for data, _, _ in table for r in _drawn_alike(records, table, data).values()}
    early = [_drawn(records, table, _EARLY, network) for _, network in _EARLY_FIGURES]
    shown |= {record.run for record in early if record}
    for run in sorted(shown):
        target = out / runs.STRIPS / run
        if records.strips[run].resolve() != target.resolve():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(records.strips[run].glob("*.png")):
                runs.write_bytes(target / file.name, file.read_bytes())
    if (out / runs.STRIPS).is_dir():
        for old in (out / runs.STRIPS).iterdir():
            if old.name not in shown and old.is_dir() and re.fullmatch(r"[0-9a-f]{12}", old.name):
                shutil.rmtree(old)


def _controls(records: Records, table: Cells) -> str:
    """Networks that differ in a switch, each beside the network that it differs from."""
    rows = []
    for data, protocol in _conditions(table):
        for network in sorted(_networks(table, data, protocol) - {*_NETWORKS}):
            cell, usual = table[data, network, protocol], network.partition(", ")[0]
            baseline = table.get((data, usual, protocol))
            rows.append(
                [
                    _named(data, records),
                    protocol,
                    network,
                    f"{cell.records[0].parameters:,}",
                    _mean(cell),
                    f"{usual} {_mean(_same_seeds(baseline, cell))}" if baseline else f"{usual} {_NOT_RUN}",
                    _gain(cell, baseline),
                ]
            )
    head = ["data", "protocol", "network", "parameters", "accuracy", "instead of", "difference"]
    text = (
        "## Controls\n\nWhat the paper did not try. With `iterations 1` all couplings are equal: routing does nothing. "
        "`gate sigmoid` is squeeze and excitation in place of the tanh gates with a residual; `gate additive` adds "
        "what the gates' layers answer, which is no attention; `width` widens `capsnet` to the parameters of "
        "`da-capsnet` and lowers its learning rate in proportion; `update replace` is the Keras example's routing."
    )
    return f"{text}\n\n{_markdown(head, rows) if rows else f'Controls: {_NOT_RUN}.'}"


def _same_seeds(cell: Cell, other: Cell) -> Cell:
    """The runs that `difference` compares with the other's: those of the same seeds if there are two, or all."""
    common = tuple(record for record in cell.records if record.seed in {r.seed for r in other.records})
    return Cell(common) if len(common) > 1 else cell


def _protocols(records: Records, table: Cells) -> str:
    rows = []
    for data in _in_order({data for data, _, _ in table}, _DATA):
        for network in _in_order({n for d, n, _ in table if d == data}, _NETWORKS):
            paper_cell, clean_cell = (table.get((data, network, protocol)) for protocol in _PROTOCOLS)
            if paper_cell and clean_cell and paper_cell.records[0].condition == clean_cell.records[0].condition:
                gap = difference(paper_cell.values(accuracy), clean_cell.values(accuracy))
                rows.append(
                    [
                        *(_named(data, records), network, str(paper_cell.epochs)),
                        *(_mean(cell) for cell in (paper_cell, clean_cell)),
                        _points(gap),
                    ]
                )
    text = (
        "## What selecting on the test set is worth\n\nProtocol `paper` trains on all training images and reports the "
        "best epoch's test accuracy; `clean` holds out a tenth, selects on it, and reads the test images once."
    )
    head = ["data", "network", "epochs", "`paper`", "`clean`", "difference"]
    return f"{text}\n\n{_markdown(head, rows) if rows else f'Both protocols: {_NOT_RUN}.'}"


def _everything(records: Records, table: Cells) -> str:
    rows = []
    for data, protocol in _conditions(table):
        for network in _in_order(_networks(table, data, protocol), _NETWORKS):
            cell = table[data, network, protocol]
            first = cell.records[0]
            rows.append(
                [
                    *(_named(data, records), protocol, network, f"{first.parameters:,}", str(cell.epochs)),
                    _mean(cell),
                    _between([r.selected_epoch for r in cell.records]),
                    f"{statistics.fmean(r.training_seconds for r in cell.records):,.0f}",
                    f"{statistics.median(r.images_per_second for r in cell.records):,.0f}",
                    _between(sorted({r.threads for r in cell.records})),
                ]
            )
    head = [
        *("data", "protocol", "network", "parameters", "epochs", "accuracy", "selected epoch"),
        *("training, s a run", "images/s", "threads"),
    ]
    text = (
        "## Accuracy, size and time\n\nParameters include the decoder. Time is training without evaluation; on the CPU "
        "the rate depends on how many threads a run had and on what else ran beside it."
    )
    others = len(records.runs) - sum(len(cell.records) for cell in table.values())
    more = f"\n\n{others} runs under other conditions are in `runs.csv` only." if others else ""
    return f"{text}\n\n{_markdown(head, rows)}{more}"


def _provenance(records: Records) -> str:
    rows = []
    for data in _in_order({record.data for record in records.runs}, _DATA):
        first = next(record for record in records.runs if record.data == data)
        sizes = (first.training_images, first.validation_images, first.test_images)
        rows.append([_named(data, records), *(f"{size:,}" for size in sizes)])
    machines = Counter(
        (r.device if r.device != "cpu" else r.processor, r.torch, r.precision, r.commit) for r in records.runs
    )
    lines = [
        f"- {count} runs on {machine}, torch {torch}, {precision}, {_commit(commit)}"
        for (machine, torch, precision, commit), count in sorted(machines.items())
    ]
    text = [
        "## Data, machines, failures",
        _markdown(["data", "training", "validation", "test images"], rows),
        "With protocol `paper` the validation images are trained on. Where a data set has no test images of its own, "
        "or they are split off by viewpoint, the split has the run's seed.",
        "\n".join(lines),
    ]
    if records.failures:
        text.append(
            _markdown(["left out", "why"], [[_plain(text) for text in failure] for failure in records.failures])
        )
    else:
        text.append("No run failed.")
    return "\n\n".join(text)


def _commit(commit: str) -> str:
    name, _, changed = commit.partition("-")
    return f"commit {name[:7]}{' with changes' if changed else ''}" if name else "of a release"


def _decisions() -> str:
    rows = [list(decision) for decision in paper.DECISIONS]
    return "\n\n".join(
        [
            "## Where the paper is silent: numbered decisions",
            _markdown(["", "the paper", "here", "setting"], rows),
            "Smaller differences:",
            "\n".join(f"- {number}. {text}" for number, text in paper.DIFFERENCES),
            "## Contradictions in print",
            "\n".join(f"- {line}" for line in paper.CONTRADICTIONS),
        ]
    )


def _conditions(table: Cells) -> list[tuple[str, str]]:
    """Data sets and protocols that something was run on."""
    data_sets = _in_order({data for data, _, _ in table}, _DATA)
    pairs = {(data, protocol) for data, _, protocol in table}
    return [(data, protocol) for data in data_sets for protocol in _PROTOCOLS if (data, protocol) in pairs]


def _networks(table: Cells, data: str, protocol: str) -> set[str]:
    return {network for where, network, how in table if (where, how) == (data, protocol)}


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _named(data: str, records: Records) -> str:
    """A data set with what its files are."""
    files = _files(data, records)
    return _plain(data if files in ("", _OFFICIAL) else f"{data}, {files}")


def _files(data: str, records: Records) -> str:
    """What a data set's files are; "" where there are none that could be official."""
    official = {record.official for record in records.runs if record.data == data} - {None}
    copy = records.copies.get(data.split(" (")[0])
    other = copy.name if copy else "not the official files"
    return " and ".join([_OFFICIAL] * (True in official) + [other] * (False in official))


def _plain(text: str) -> str:
    """Text whose characters mean nothing in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#!|&])", r"\\\1", text)


def _mean(cell: Cell, of: Callable[[Record], float] = accuracy) -> str:
    values = list(cell.values(of).values())
    std = spread(values)
    return f"{statistics.fmean(values):.2f}" + (f" ± {std:.2f}" if std is not None else "") + f" (n = {len(values)})"


def _points(interval: Interval, *, count: bool = True) -> str:
    """A difference in points with its interval, bold where that does not hold zero."""
    n = f", n = {interval.n}" if count else ""
    mean = f"{round(interval.mean, 2) + 0.0:+.2f}".replace("-", "−")  # no difference is not below zero
    if math.isinf(interval.low):
        return f"{mean} (n = {interval.n})"
    alike = math.isclose(interval.low, interval.high, abs_tol=2e-3)  # records keep six digits
    bounds = "all alike" if alike else f"{interval.low:+.2f} to {interval.high:+.2f}".replace("-", "−")
    text = f"{mean} ({bounds}{n})"
    sure = interval.n > 2 and (interval.low > 0 or interval.high < 0)
    return f"**{text}**" if count and sure else text


def _between(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _verdict(finding: Finding) -> str:
    return f"{finding.verdict}: {finding.reason}" if finding.reason else finding.verdict


def _file_name(data: str) -> str:
    """A data set's name as a part of a file's name, never the same for two."""
    plain = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")
    return plain if data in _DATA else f"{plain}-{zlib.crc32(data.encode()):08x}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)


def _image(picture: _Picture) -> str:
    return f"![{picture.caption}](figures/{picture.name})\n\n*{picture.caption}*"


def _write_findings(file: Path, findings: Sequence[Finding], records: Records) -> None:
    """A line for each printed number."""
    columns = [
        *("where", "data", "files", "network", "quantity", "baseline", "printed", "protocol", "epochs", "n"),
        *("ours", "std", "difference", "low", "high", "verdict", "reason"),
    ]
    lines = []
    for finding in findings:
        printed, less = finding.printed, finding.difference
        numbers = [None] * 6
        if finding.ours is not None and less is not None:
            bounds = [None if math.isinf(bound) else bound for bound in less[:3]]
            numbers = [finding.ours.n, finding.ours.mean, finding.std, *bounds]
        files = _files(printed.data, records)
        lines.append(
            [
                *(printed.where, printed.data, files, printed.network, printed.quantity, printed.baseline),
                *(str(printed.value), finding.protocol, str(finding.epochs or "")),
                *("" if number is None else f"{number:.4f}".rstrip("0").rstrip(".") for number in numbers),
                *(finding.verdict, finding.reason),
            ]
        )
    write_csv(file, columns, lines)


def _page(text: str, pictures: Sequence[_Picture]) -> str:
    """The Markdown as one HTML page, pictures inside it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for picture in pictures:
        kind = "svg+xml" if picture.name.endswith(".svg") else "png"
        inside = f"data:image/{kind};base64,{base64.b64encode(picture.content).decode()}"
        body = body.replace(f'src="figures/{picture.name}"', f'src="{inside}"')
    body = re.sub(r"(?<=[\dn]) ([±=]) (?=\d)", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", body)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    for verdict in ("not reproduced", "reproduced", "inconclusive", "not run"):
        marked = f'<td class="{verdict.replace(" ", "-")}">{verdict}'
        body = re.sub(rf"<td>{verdict}(?=[:<])", marked, body)
    titles = re.findall(r"<h2>(.*?)</h2>", body)
    for number, title in enumerate(titles):
        body = body.replace(f"<h2>{title}</h2>", f'<h2 id="part-{number}">{title}</h2>', 1)
    links = "".join(f'<a href="#part-{number}">{title}</a>' for number, title in enumerate(titles))
    body = body.replace("<h2", f"<nav>{links}</nav>\n<h2", 1)
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return _TEMPLATE.format(title=title, style=_STYLE, body=body)


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light; --line: #d8dee4; --soft: #f4f6f8; --link: #1d5fa8; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: #1c2127; background: #fff; }
main { max-width: 1100px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .6rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .8rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 75ch; }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin: 1.2rem 0; font-size: .9rem; }
a { color: var(--link); }
code { background: var(--soft); padding: .1em .3em; border-radius: 3px; font-size: .9em; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); }
td { min-width: 3rem; }
td.reproduced { background: #def3e3; }
td.not-reproduced { background: #fbe1de; }
td.inconclusive { background: #fdf2cf; }
td.not-run { color: #66707a; }
@media (max-width: 700px) {
  table { width: max-content; }
  td, th { max-width: 13rem; }
  td:first-child, th:first-child { position: sticky; left: 0; max-width: 6.5rem; }
  td:first-child { background: #fff; }
}
img { max-width: 100%; height: auto; display: block; }
em { color: #4a545e; font-size: .9rem; }
"""
