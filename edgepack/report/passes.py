"""Table of the chain: cost and loss of the model after every pass, and the change by that pass.

Rows are the measured records of the ledger. A column without a figure in any row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast

from edgepack.ledger import Measured, RecordDocument, read_measured
from edgepack.metrics.results import list_metrics
from edgepack.report.cautions import list_disturbances
from edgepack.report.documents import Report
from edgepack.report.figures import (
    METRIC_LABELS,
    format_bytes,
    format_decibel,
    format_number,
    format_percent,
    format_plural,
    format_short_count,
    is_share,
)
from edgepack.report.findings import format_worst
from edgepack.runtime.commands.load import SPREAD
from edgepack.runtime.documents import Gate, Measurement, MetricResult

# Headings by key, in order; the name of the task's metric replaces "metric". Further metrics
# follow it, with keys such as "metric:f1".
COLUMNS = {
    "bytes": "Size",
    "parameters": "Parameters",
    "macs": "MACs",
    "speed": "Speed",
    "metric": "metric",
    "snr": "SNR",
}
# From this many samples on, a hundredth of a per cent is significant.
_MANY = 1000
# Column that a missed gate marks; any other gate marks the SNR.
_MARKS = {"agreement": "metric"}
_METRIC_GATES = ("metric_ratio", "max_drop", "metric_min", "metric_max")


@dataclass(frozen=True)
class Cell:
    """One figure of one row.

    Attributes:
        text: the figure; a dash without one.
        change: signed difference from the row before; empty if equal or unknown.
        missed: true if a gate on the figure is missed.
    """

    text: str
    change: str = ""
    missed: bool = False


@dataclass(frozen=True)
class Row:
    """Figures of the model after one pass.

    Attributes:
        name: name of the pass; "original" for the graph before the chain.
        cells: cells by key of the column.
        missed: true if any quality gate is missed.
    """

    name: str
    cells: Mapping[str, Cell]
    missed: bool


@dataclass(frozen=True)
class Table:
    """Figures of the chain, pass by pass.

    Attributes:
        columns: heading by key, in order.
        rows: rows, the original first.
        caption: samples and method of the measurement.
        remarks: sentences printed below the table.
    """

    columns: Mapping[str, str]
    rows: Sequence[Row]
    caption: str
    remarks: Sequence[str]


def tabulate_passes(report: Report) -> Table | None:
    """Return the table of a report; None if no pass was measured."""
    records = [record for record in report["ledger"] if record.get("measured")]
    if len(records) < 2:
        return None
    # Each row is compared with the one before: (original, None), (prune, original), ...
    befores = [None, *records[:-1]]
    rows = list(map(_format_row, records, befores))
    # The last one ships. Its speed is told once: as `bench` measured it, longer than the others.
    latency = report["latency"]
    if latency and rows[-1].cells["speed"].text != _NONE:
        speed = f"{latency['ratio']:.2f}×"
        if list_disturbances(report):
            speed = f"about {latency['ratio']:.1f}×"
        before = read_measured(records[-2])["latency"]
        growth = before["ratio"] / latency["ratio"] - 1 if before else None
        cell = Cell(speed, _format_growth(growth))
        rows[-1] = replace(rows[-1], cells={**rows[-1].cells, "speed": cell})
    measured = read_measured(records[-1])
    # The first row is the original, whose answers are finite, so that it has every metric.
    columns = {}
    for key, heading in _list_headings(read_measured(records[0])).items():
        if _has_figures(rows, key):
            columns[key] = heading
    rows = [replace(row, cells=_fill(row.cells, columns)) for row in rows]
    # The first note of a repair states its price, or the reason that there was none.
    remarks = [record["notes"][0] for record in report["ledger"] if record["stage"] == "repair"]
    return Table(columns, rows, _format_caption(measured), remarks)


def _list_headings(measured: Measured) -> dict[str, str]:
    headings = {}
    for key, heading in COLUMNS.items():
        if key != "metric":
            headings[key] = heading
            continue
        metrics = list_metrics(measured["quality"])
        headings[key] = _name_metric(metrics[0]) if metrics else "Agreement"
        for metric in metrics[1:]:
            headings[f"metric:{metric['name']}"] = _name_metric(metric)
    return headings


def _name_metric(metric: MetricResult) -> str:
    return METRIC_LABELS.get(metric["name"], metric["name"])


def _fill(cells: Mapping[str, Cell], columns: Collection[str]) -> dict[str, Cell]:
    return {key: cells.get(key, Cell(_NONE)) for key in columns}


def _has_figures(rows: Sequence[Row], key: str) -> bool:
    return any(row.cells[key].text != _NONE for row in rows if key in row.cells)


def _format_caption(measured: Measured) -> str:
    caption = f"On {format_plural(measured['quality']['samples'], 'sample')} of the evaluation set"
    if measured["latency"]:
        caption += "; speed against the original in fp32, in turns"
    return caption + "."


_NONE = "–"


def _format_row(record: RecordDocument, before: RecordDocument | None) -> Row:
    measured = read_measured(record)
    # The first row has no change, and no figure of its cells gets one.
    change = cast("Mapping[str, float | None]", measured["change"] or {})
    further = {metric["name"] for metric in list_metrics(measured["quality"])[1:]}
    missed = {_find_column(gate, further) for gate in measured["missed"]}
    snr = _format_snr(measured["quality"])
    cells = {
        "bytes": Cell(
            format_bytes(record["bytes"]) or _NONE, _format_change(change, "bytes", before)
        ),
        "parameters": Cell(
            _format_count(record["parameters"]), _format_change(change, "parameters", before)
        ),
        "macs": Cell(_format_count(measured["macs"]), _format_change(change, "macs", before)),
        "speed": Cell(
            _format_speed(measured),
            _format_growth(change.get("latency")),
        ),
        "metric": Cell(
            _format_score(measured["quality"]),
            _format_score_change(measured["quality"], change.get("metric_points")),
            "metric" in missed,
        ),
        "snr": Cell(
            snr, _format_signed(change.get("snr_db"), 0.05, format_decibel), "snr" in missed
        ),
    }
    cells.update(_format_further(measured, before, missed))
    name = "original" if before is None else record["stage"]
    return Row(name, cells, bool(missed))


def _format_growth(latency: float | None) -> str:
    return _format_signed(latency, 0.005, lambda value: f"{format_percent(value, 0)} time")


def _find_column(gate: Gate, further: Set[str]) -> str:
    """Return the key of the column that a missed gate marks."""
    name, output = gate["name"], gate["output"]
    if name not in _METRIC_GATES:
        return _MARKS.get(name, "snr")
    return f"metric:{output}" if output in further else "metric"


def _format_further(
    measured: Measured, before: RecordDocument | None, missed: Set[str]
) -> dict[str, Cell]:
    """Return the cells of the metrics beside the primary one."""
    previous = {}
    if before is not None:
        for metric in read_measured(before)["quality"].get("further_metrics", ()):
            previous[metric["name"]] = metric["model"]
    cells, samples = {}, measured["quality"]["samples"]
    for metric in measured["quality"].get("further_metrics", ()):
        name, key = metric["name"], f"metric:{metric['name']}"
        change = ""
        if name in previous:
            points = 100 * (metric["model"] - previous[name])
            change = _format_points(metric, points)
        cells[key] = Cell(_format_value(metric, samples), change, key in missed)
    return cells


def _format_speed(measured: Measured) -> str:
    # 1.00× for the original, 2.41× for a model that takes 41 % of its time.
    latency = measured["latency"]
    if latency is None:
        return _NONE
    # With rounds that disagree, the second decimal says nothing.
    if latency.get("spread", 0.0) > SPREAD:
        return f"about {latency['ratio']:.1f}×"
    return f"{latency['ratio']:.2f}×"


def _read_metric(quality: Measurement) -> float | None:
    """Return the model's task metric, else its share of decisions equal to the original's."""
    if quality["metric"]:
        return float(quality["metric"]["model"])
    # Of several outputs that decide, the worst counts; others have no agreement.
    worst: float | None = None
    for metrics in quality["outputs"].values():
        share = metrics.get("top1_agreement")
        if share is not None and (worst is None or share < worst):
            worst = share
    return worst


def _format_score(quality: Measurement) -> str:
    """Format the metric or the agreement: "88.4 %"; a metric that is not a share as a number."""
    score, metric = _read_metric(quality), quality["metric"]
    if score is None:
        return _NONE
    if metric:
        return _format_value(metric, quality["samples"])
    return _format_share(score, quality["samples"])


def _format_value(metric: MetricResult, samples: int) -> str:
    if is_share(metric):
        return _format_share(metric["model"], samples)
    return format_number(metric["model"])


def _format_share(score: float, samples: int) -> str:
    return format_percent(score, 2 if samples >= _MANY else 1)


def _format_score_change(quality: Measurement, points: float | None) -> str:
    return _format_points(quality["metric"], points)


def _format_points(metric: MetricResult | None, points: float | None) -> str:
    if metric and not is_share(metric):
        return _format_signed(points, 0.0, lambda value: format_number(value / 100))
    return _format_signed(points, 0.005, lambda value: f"{value:.2f} points")


def _format_snr(quality: Measurement) -> str:
    return format_worst(quality["outputs"], _NONE)


def _format_count(value: int | None) -> str:
    if value is None:
        return _NONE
    return format_short_count(value)


def _format_change(
    change: Mapping[str, float | None], key: str, before: RecordDocument | None
) -> str:
    """Return a difference as a share of the row before: 13.01 MB after 18.55 MB is "−30 %"."""
    difference = change.get(key)
    if before is None or not difference:
        return ""
    macs = read_measured(before)["macs"]
    sizes = {"bytes": before["bytes"], "parameters": before["parameters"], "macs": macs}
    previous = sizes[key]
    if not previous:
        return ""
    return _format_signed(difference / previous, 0.0, lambda share: format_percent(share, 0))


def _format_signed(value: float | None, least: float, text: Callable[[float], str]) -> str:
    """Return a change with its sign; empty if it rounds to zero."""
    if value is None or abs(value) <= least:
        return ""
    if value < 0:
        return f"−{text(-value)}"
    return f"+{text(value)}"
