"""The sections of a report, in Markdown, from the runs and the findings."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dualcaps.plots import accuracy_curves, png, strip_rows, svg
from dualcaps.study import paper
from dualcaps.study.experiments.card import (
    ADDITIVE,
    CAPS_ATT,
    CAPSNET,
    CNN,
    CONV_ATT,
    DA_CAPSNET,
    FOUR,
    DataKey,
    Variant,
    variant,
)
from dualcaps.study.paper import Printed
from dualcaps.study.records import Record, Records, name_of
from dualcaps.study.report.figures import EARLY, EARLY_FIGURES, Picture, drawn, drawn_alike, image, read_strips, which
from dualcaps.study.report.tables import (
    DATA,
    NETWORKS,
    NOT_RUN,
    PROTOCOLS,
    between,
    conditions,
    file_name,
    in_order,
    markdown_table,
    mean_and_std,
    named,
    networks_of,
    p_values,
    plain,
    points,
    verdict_text,
)
from dualcaps.study.statistics import Cell, Cells, accuracy, epochs_to, first_five, gain, paired_difference
from dualcaps.study.verdicts import RULE, VERDICTS, Finding

SHARED = variant("da-capsnet", caps_attention="shared")
_COIL = DataKey("coil-20")
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
_FIGURES = {DataKey("cifar-10"): "Fig. 11", DataKey("fashion-mnist"): "Fig. 12", DataKey("svhn"): "Fig. 13"}
_MOST_NAMES = 5


FOLDED = (
    *("The rule", "Epochs to thresholds", "Accuracy, size and time", "Data, machines, failures"),
    "Decisions where the paper is silent",
)
"""Sections that the page shows when they are opened."""


def compose(
    records: Records, table: Cells, findings: Sequence[Finding], discussion: str | None = None
) -> tuple[str, list[Picture]]:
    """The whole report as Markdown, and its pictures; without the paper's tables if nothing in them was run.

    Args:
        records: the runs.
        table: the runs by data, network and protocol.
        findings: the verdicts on the printed numbers.
        discussion: the address of a page that discusses the results, relative to the report.
    """
    pictures: list[Picture] = []
    with_paper = compares_with_paper(findings)
    sections = [_opening(records, findings)]
    if with_paper:
        sections.append(_conclusions(records, table, findings, discussion))
    sections += [_accuracies(records, table), _attention(records, table)]
    if with_paper:
        sections.append(f"## The rule\n\n{RULE}")
        sections += [_printed_table(where, findings, records, table) for where in ("Table 1", "Table 2", "Table 4")]
        sections += [_early_reconstructions(records, table, pictures), _epochs_to_all(findings)]
    sections += [
        _thresholds(records, table),
        _curves(records, table, pictures, with_paper),
        _reconstructions(records, table, pictures, with_paper),
        _controls(records, table),
        _protocols(records, table),
        _everything(records, table),
        _provenance(records),
    ]
    if with_paper:
        sections.append(_decisions())
    return "\n\n".join(section for section in sections if section) + "\n", pictures


def compares_with_paper(findings: Sequence[Finding]) -> bool:
    """Whether any number that the paper prints was run."""
    return any(finding.verdict != NOT_RUN for finding in findings)


def _opening(records: Records, findings: Sequence[Finding]) -> str:
    finished = f"{len(records.runs):,} finished runs"
    units = (
        "Accuracies are of the test set, in %, mean ± standard deviation over n seeds; differences are in percentage "
        "points with their 95 % interval."
    )
    if not compares_with_paper(findings):
        return f"# Networks compared\n\n**{finished}.** {units}"
    counts = Counter(finding.verdict for finding in findings)
    verdicts = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    lines = [
        "# DA-CapsNet, run again",
        'The numbers that Huang & Zhou, "DA-CapsNet: dual attention mechanism capsule network" (Scientific Reports '
        "10, 11383, 2020) print of their results, with ours beside them. The authors published no code; where the text "
        "is silent, the numbered decisions at the end say what was done.",
        f"**{finished}. Verdicts on {len(findings)} printed numbers: {verdicts}.** {units}",
    ]
    return "\n\n".join(lines)


def _conclusions(records: Records, table: Cells, findings: Sequence[Finding], discussion: str | None) -> str:
    """What the runs say of the paper's claims, and the printed numbers with a definite verdict."""
    gains = []
    for data, protocol in conditions(table):
        ours, baseline = (table.get((data, network, protocol)) for network in (DA_CAPSNET, CAPSNET))
        if ours and baseline:
            found = gain(ours, baseline, accuracy)
            gains.append(f"{points(found)} on {named(data, records)} ({protocol}, {_epochs(ours.epochs)})")
    lines = ["## Conclusions"]
    if gains:
        lines.append(f"- `da-capsnet` over `capsnet`, points: {'; '.join(gains)}.")
    for verdict in VERDICTS[:4]:
        for finding in findings:
            if finding.verdict == verdict:
                printed, ours = finding.printed, finding.ours
                what = f"{printed.where}, {named(printed.data, records)}, {_what(printed)}"
                number = f"{printed.value:+g}" if printed.baseline else f"{printed.value:g}"
                mine = "" if ours is None else f", ours {ours.mean:{'+.2f' if printed.baseline else '.2f'}}"
                reason = f" ({finding.reason})" if finding.reason else ""
                lines.append(f"- **{verdict}**: {what}: printed {number}{mine}{reason}.")
    rest = Counter(finding.verdict for finding in findings)
    lines.append(f"- {rest['inconclusive']} numbers are inconclusive, {rest[NOT_RUN]} not run; the tables say why.")
    if discussion:
        lines.append(f"\nWhat follows, and what the controls say: [discussion]({discussion}).")
    return "\n".join([lines[0], "", *lines[1:]])


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _accuracies(records: Records, table: Cells) -> str:
    """The networks by their names, without switches, side by side."""
    networks = in_order({network for _, network, _ in table if network.plain}, NETWORKS)
    rows = []
    for data, protocol in conditions(table):
        ours = [table.get((data, network, protocol)) for network in networks]
        if epochs := {cell.epochs for cell in ours if cell}:
            numbers = [mean_and_std(cell) if cell else NOT_RUN for cell in ours]
            rows.append([named(data, records), protocol, between(sorted(epochs)), *numbers])
    text = (
        "## Accuracy\n\nOn the test images, in %. Protocol `paper` trains on all training images and selects the epoch "
        "on the test images, as the paper did; `clean` selects it on a tenth of the training images, held out."
    )
    head = ["data", "protocol", "epochs", *map(str, networks)]
    lines = [text, markdown_table(head, rows) if rows else f"Networks without switches: {NOT_RUN}."]
    if stuck := [record for cell in table.values() for record in cell.records if _at_chance(record)]:
        names = [f"{plain(name_of(record))} ({100 * record.test_accuracy:.2f} %)" for record in stuck[:_MOST_NAMES]]
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
    for data, protocol in conditions(table):
        baseline = table.get((data, CAPSNET, protocol))
        widened = _widened(table, data, protocol)
        da = table.get((data, DA_CAPSNET, protocol))
        added = table.get((data, ADDITIVE, protocol))
        small = table.get((data, SHARED, protocol))
        if not baseline:
            continue
        gains = [_gain(table.get((data, network, protocol)), baseline) for network in (CONV_ATT, CAPS_ATT, DA_CAPSNET)]
        even = (_gain(da, widened), _gain(da, added), _gain(small, baseline))
        rows.append([named(data, records), protocol, str(baseline.epochs), *gains, *even])
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
    return f"{text}\n\n{markdown_table(head, rows)}" if rows else ""


def _gain(ours: Cell | None, baseline: Cell | None) -> str:
    if ours is None or baseline is None:
        return NOT_RUN
    return points(gain(ours, baseline, accuracy))


def _widened(table: Cells, data: DataKey, protocol: str) -> Cell | None:
    """`capsnet` with the parameters of `da-capsnet`, within a hundredth."""
    if not (da := table.get((data, DA_CAPSNET, protocol))):
        return None
    wanted = da.records[0].parameters
    for network in sorted(networks_of(table, data, protocol), key=str):
        cell = table[data, network, protocol]
        alike = network.model == "capsnet" and [name for name, _ in network.switches] == ["width"]
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
            columns = [_ours(table, printed, protocol) for protocol in PROTOCOLS]
            rows.append(
                [
                    named(printed.data, records),
                    _what(printed),
                    f"{printed.value:+.2f}" if "gain" in printed.quantity else f"{printed.value:.2f}",
                    *columns,
                    NOT_RUN if finding.difference is None else points(finding.difference, count=False),
                    str(finding.epochs or ""),
                    verdict_text(finding),
                    *p_values(finding),
                ]
            )
    head = [
        *("data", "network", "printed", "ours, `paper`", "ours, `clean`"),
        *("ours − printed", "epochs", "verdict", "p, equal", "p, different"),
    ]
    missing = (
        "\n\nOur copy of the paper's text lacks the numbers of the CNN on CIFAR-10, SVHN and Fashion-MNIST."
        if where == "Table 4"
        else ""
    )
    return f"## {titles[where]}\n\n{markdown_table(head, rows)}{missing}"


def _what(printed: Printed) -> str:
    if printed.baseline is None:
        return str(printed.network) if printed.quantity == "accuracy" else f"{printed.network}, {printed.quantity}"
    over = f"{printed.network} over {printed.baseline}"
    return f"{over}, mean of epochs 1 to 5" if printed.quantity == "first-five gain" else over


def _ours(table: Cells, printed: Printed, protocol: str) -> str:
    cell = table.get((printed.data, printed.network, protocol))
    baseline = table.get((printed.data, printed.baseline, protocol)) if printed.baseline else None
    of = first_five if printed.quantity == "first-five gain" else accuracy
    if not cell or (printed.baseline and not baseline) or (of is first_five and cell.epochs < 5):
        return NOT_RUN
    if baseline:
        return points(gain(cell, baseline, of))
    return mean_and_std(cell, of)


def _epochs_to_all(findings: Sequence[Finding]) -> str:
    rows = []
    for finding in findings:
        if finding.printed.quantity == "epochs to 100 %":
            ours = NOT_RUN if finding.verdict == NOT_RUN else "not by all"
            ours = f"{finding.ours.mean:.1f} (n = {finding.ours.n})" if finding.ours else ours
            printed = f"{finding.printed.value:.0f}"
            rows.append([str(finding.printed.network), printed, ours, str(finding.epochs or ""), verdict_text(finding)])
    head = ["network", "printed, epochs to 100 %", "ours", "epochs trained", "verdict"]
    text = "## Fig. 10: epochs until every test image of MNIST is right"
    return f"{text}\n\n{markdown_table(head, rows)}"


def _thresholds(records: Records, table: Cells) -> str:
    text = [
        "## Epochs to thresholds\n\nThe first epoch that reaches a threshold on the part that the epoch is selected on "
        "(the test set with protocol `paper`, held-out training images with `clean`): mean over the seeds that reach "
        "it, and how many do."
    ]
    for data in in_order({data for data, _, _ in table}, DATA):
        thresholds = _THRESHOLDS.get(data.source, _OTHER_THRESHOLDS) if not data.place else _OTHER_THRESHOLDS
        rows = []
        for protocol in PROTOCOLS:
            for network in in_order(networks_of(table, data, protocol), NETWORKS):
                cell = table[data, network, protocol]
                reached = [_reached(cell, threshold) for threshold in thresholds]
                early = mean_and_std(cell, first_five) if cell.epochs >= 5 else "–"
                rows.append([protocol, str(network), str(cell.epochs), *reached, early])
        head = ["protocol", "network", "epochs", *(f"{t:g} %" for t in thresholds), "mean of epochs 1 to 5"]
        text += [f"### {named(data, records)}", markdown_table(head, rows)]
    return "\n\n".join(text)


def _reached(cell: Cell, threshold: float) -> str:
    epochs = [epoch for record in cell.records if (epoch := epochs_to(record, threshold)) is not None]
    if not epochs:
        return "–"
    return f"{statistics.fmean(epochs):.1f} ({len(epochs)} of {len(cell.records)})"


def _curves(records: Records, table: Cells, pictures: list[Picture], with_paper: bool) -> str:
    text = [
        f"## {'Figs. 11 to 13: accuracy' if with_paper else 'Accuracy'} against epoch",
        "Median over the seeds; thin lines are single runs, of which one that failed may lie below the axis. Protocol "
        "`paper`: accuracy on the test set, as the paper drew it; `clean`: on held-out training images.",
    ]
    for data, figure in _FIGURES.items():
        if with_paper and not any(d == data for d, _, _ in table):
            text.append(f"{figure} ({data}): {NOT_RUN}.")
    for data, protocol in conditions(table):
        networks = in_order(networks_of(table, data, protocol), (*FOUR, CNN))
        curves = {
            str(network): np.array(
                [[100 * e.accuracy for e in r.history] for r in table[data, network, protocol].records]
            )
            for network in networks
            if network in NETWORKS
        }
        if not curves:
            continue
        part = "test set" if protocol == "paper" else "held-out training images"
        counts = {len(values) for values in curves.values()}
        n = f"{counts.pop()}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        number = f"{_FIGURES[data]}: " if data in _FIGURES and protocol == "paper" else ""
        caption = f"{number}{named(data, records)}, accuracy on the {part}, protocol {protocol}, n = {n}"
        name = f"curves-{file_name(data)}-{protocol}.svg"
        pictures.append(Picture(name, svg(accuracy_curves(curves)), caption))
        text.append(image(pictures[-1]))
    return "\n\n".join(text)


def _early_reconstructions(records: Records, table: Cells, pictures: list[Picture]) -> str:
    text = ["## Figs. 8 and 9: reconstructions after the first epochs"]
    for figure, network in EARLY_FIGURES:
        record = drawn(records, table, EARLY, network)
        if record is None:
            text.append(f"{figure} ({EARLY}, {network}): {NOT_RUN}.")
            continue
        folder = records.strips[record.run]
        epochs = sorted((int(f.stem.partition("-")[2]), f) for f in folder.glob("epoch-*.png"))
        rows = {"input": folder / "input.png"} | {f"epoch {number}": file for number, file in epochs}
        caption = f"{figure}: Fashion-MNIST, {network} after each of the first epochs, {which(record)}"
        name = f"fig-{figure.removeprefix('Fig. ')}-{network}.png"
        pictures.append(Picture(name, png(strip_rows(read_strips(rows))), caption))
        text.append(image(pictures[-1]))
    return "\n\n".join(text)


def _reconstructions(records: Records, table: Cells, pictures: list[Picture], with_paper: bool) -> str:
    errors, before = _errors(records, table), len(pictures)
    text = [
        f"## {'Fig. 14: reconstructions' if with_paper else 'Reconstructions'}",
        "What the decoder makes of the pose of a test image's predicted class. How far that is from the image, over "
        "all test images: root of the mean squared difference, in grey levels of 255.",
        errors or f"Errors: {NOT_RUN}.",
        "Test images, one of each class, ten at the most:",
    ]
    others = [data for data in in_order({data for data, _, _ in table}, DATA) if data != _COIL]
    for data, figure in ((_COIL, "Fig. 14"), *((data, "") for data in others)):
        shown = drawn_alike(records, table, data)
        if not shown:
            if figure and with_paper:
                text.append(f"{figure} ({data}): {NOT_RUN}.")
            continue
        folders = {network: records.strips[record.run] for network, record in shown.items()}
        rows = {"input": next(iter(folders.values())) / "input.png"}
        rows |= {str(network): folder / "selected.png" for network, folder in folders.items()}
        label = f"{figure}: {named(data, records)}" if figure else named(data, records)
        caption = f"{label}, selected epoch, {which(next(iter(shown.values())))}"
        pictures.append(Picture(f"reconstructions-{file_name(data)}.png", png(strip_rows(read_strips(rows))), caption))
        text.append(image(pictures[-1]))
    if not with_paper and not errors and len(pictures) == before:
        return ""
    return "\n\n".join(text)


def _errors(records: Records, table: Cells) -> str:
    rows = []
    for data, protocol in conditions(table):
        drawing = {
            network: cell
            for network in FOUR
            if (cell := table.get((data, network, protocol))) and all(r.reconstruction_error for r in cell.records)
        }
        if not drawing:
            continue
        errors = [mean_and_std(drawing[n], _grey_levels) if n in drawing else NOT_RUN for n in FOUR]
        gap = NOT_RUN
        if CAPSNET in drawing and DA_CAPSNET in drawing:
            gap = points(gain(drawing[DA_CAPSNET], drawing[CAPSNET], _grey_levels))
        rows.append([named(data, records), protocol, *errors, gap])
    head = ["data", "protocol", *map(str, FOUR), "da-capsnet less capsnet"]
    return markdown_table(head, rows) if rows else ""


def _grey_levels(record: Record) -> float:
    return 255 * math.sqrt(record.reconstruction_error or math.nan)


def _controls(records: Records, table: Cells) -> str:
    """Networks that differ in a switch, each beside the network that it differs from."""
    rows = []
    for data, protocol in conditions(table):
        for network in sorted(networks_of(table, data, protocol) - {*NETWORKS}, key=str):
            cell, usual = table[data, network, protocol], Variant(network.model)
            baseline = table.get((data, usual, protocol))
            rows.append(
                [
                    named(data, records),
                    protocol,
                    str(network),
                    f"{cell.records[0].parameters:,}",
                    mean_and_std(cell),
                    f"{usual} {mean_and_std(_same_seeds(baseline, cell))}" if baseline else f"{usual} {NOT_RUN}",
                    _gain(cell, baseline),
                    *_drawn(cell, baseline),
                ]
            )
    head = [
        *("data", "protocol", "network", "parameters", "accuracy", "instead of", "difference"),
        *("reconstruction error", "difference"),
    ]
    text = (
        "## Controls\n\nWhat the paper did not try. With `iterations 1` all couplings are equal: routing does nothing. "
        "`gate sigmoid` is squeeze and excitation in place of the tanh gates with a residual; `gate additive` adds "
        "what the gates' layers answer, which is no attention; `width` widens `capsnet` to the parameters of "
        "`da-capsnet` and lowers its learning rate in proportion; `update replace` is the Keras example's routing. "
        "Reconstruction errors are root mean squares in grey levels of 255, where they were recorded."
    )
    return f"{text}\n\n{markdown_table(head, rows)}" if rows else ""


def _drawn(cell: Cell, baseline: Cell | None) -> tuple[str, str]:
    """The reconstruction error, and how much larger it is than the baseline's."""
    known = [every is not None and all(r.reconstruction_error for r in every.records) for every in (cell, baseline)]
    error = mean_and_std(cell, _grey_levels) if known[0] else ""
    return error, points(gain(cell, baseline, _grey_levels)) if baseline and all(known) else ""


def _same_seeds(cell: Cell, other: Cell) -> Cell:
    """The runs that `difference` compares with the other's: those of the same seeds if there are two, or all."""
    common = tuple(record for record in cell.records if record.seed in {r.seed for r in other.records})
    return Cell(common) if len(common) > 1 else cell


def _protocols(records: Records, table: Cells) -> str:
    rows = []
    for data in in_order({data for data, _, _ in table}, DATA):
        for network in in_order({n for d, n, _ in table if d == data}, NETWORKS):
            paper_cell, clean_cell = (table.get((data, network, protocol)) for protocol in PROTOCOLS)
            if paper_cell and clean_cell and paper_cell.records[0].condition == clean_cell.records[0].condition:
                gap = paired_difference(paper_cell.values(accuracy), clean_cell.values(accuracy))
                rows.append(
                    [
                        *(named(data, records), str(network), str(paper_cell.epochs)),
                        *(mean_and_std(cell) for cell in (paper_cell, clean_cell)),
                        points(gap),
                    ]
                )
    text = (
        "## What selecting on the test set is worth\n\nProtocol `paper` trains on all training images and reports the "
        "best epoch's test accuracy; `clean` holds out a tenth, selects on it, and reads the test images once."
    )
    head = ["data", "network", "epochs", "`paper`", "`clean`", "difference"]
    return f"{text}\n\n{markdown_table(head, rows)}" if rows else ""


def _everything(records: Records, table: Cells) -> str:
    rows = []
    for data, protocol in conditions(table):
        for network in in_order(networks_of(table, data, protocol), NETWORKS):
            cell = table[data, network, protocol]
            first = cell.records[0]
            rows.append(
                [
                    *(named(data, records), protocol, str(network), f"{first.parameters:,}", str(cell.epochs)),
                    mean_and_std(cell),
                    between([r.selected_epoch for r in cell.records]),
                    f"{statistics.fmean(r.training_seconds for r in cell.records):,.0f}",
                    f"{statistics.median(r.images_per_second for r in cell.records):,.0f}",
                    between(sorted({r.threads for r in cell.records})),
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
    return f"{text}\n\n{markdown_table(head, rows)}{more}"


def _provenance(records: Records) -> str:
    rows = []
    for data in in_order({record.data for record in records.runs}, DATA):
        first = next(record for record in records.runs if record.data == data)
        sizes = (first.training_images, first.validation_images, first.test_images)
        rows.append([named(data, records), *(f"{size:,}" for size in sizes)])
    machines = Counter(
        (r.device if r.device != "cpu" else r.processor, r.torch, r.precision, r.commit) for r in records.runs
    )
    lines = [
        f"- {count} runs on {machine}, torch {torch}, {precision}, {_commit(commit)}"
        for (machine, torch, precision, commit), count in sorted(machines.items())
    ]
    text = [
        "## Data, machines, failures",
        markdown_table(["data", "training", "validation", "test images"], rows),
        "With protocol `paper` the validation images are trained on. Where a data set has no test images of its own, "
        "or they are split off by viewpoint, the split has the run's seed.",
        "\n".join(lines),
    ]
    if records.failures:
        text.append(
            markdown_table(["left out", "why"], [[plain(text) for text in failure] for failure in records.failures])
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
            "## Decisions where the paper is silent",
            markdown_table(["", "the paper", "here", "setting"], rows),
            "Smaller differences:",
            "\n".join(f"- {number}. {text}" for number, text in paper.DIFFERENCES),
            "## Contradictions in print",
            "\n".join(f"- {line}" for line in paper.CONTRADICTIONS),
        ]
    )
