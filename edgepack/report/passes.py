"""Table of the chain: cost and loss of the model after every pass, and the change by that pass.

Rows are the measured records of the ledger. A column without a figure in any row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgepack.ledger import Measured, RecordDocument, read_measured
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
from edgepack.runtime.documents import Measurement

# Headings by key, in order; the name of the task's metric replaces "metric".
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
_MARKS = {"metric_ratio": "metric", "max_drop": "metric", "agreement": "metric"}


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
    measured = read_measured(records[-1])
    columns = {}
    for key, heading in _list_headings(measured).items():
        if _has_figures(rows, key):
            columns[key] = heading
    # The first note of a repair states its price, or the reason that there was none.
    remarks = [record["notes"][0] for record in report["ledger"] if record["stage"] == "repair"]
    return Table(columns, rows, _format_caption(measured), remarks)


def _list_headings(measured: Measured) -> dict[str, str]:
    metric = measured["quality"]["metric"]
    if not metric:
        return {**COLUMNS, "metric": "Agreement"}
    return {**COLUMNS, "metric": METRIC_LABELS.get(metric["name"], metric["name"])}


def _has_figures(rows: Sequence[Row], key: str) -> bool:
    return any(row.cells[key].text != _NONE for row in rows)


def _format_caption(measured: Measured) -> str:
    caption = f"On {format_plural(measured['quality']['samples'], 'sample')} of the evaluation set"
    if measured["latency"]:
        caption += "; speed against the original in fp32: half a second in turns, one thread"
    return caption + "."


_NONE = "–"


def _format_row(record: RecordDocument, before: RecordDocument | None) -> Row:
    measured = read_measured(record)
    # The first row has no change, and no figure of its cells gets one.
    change = cast("Mapping[str, float | None]", measured["change"] or {})
    missed = {_MARKS.get(gate["name"], "snr") for gate in measured["missed"]}
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
            _format_signed(change.get("latency"), 0.005, lambda v: f"{format_percent(v, 0)} time"),
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
    name = "original" if before is None else record["stage"]
    return Row(name, cells, bool(missed))


def _format_speed(measured: Measured) -> str:
    # 1.00× for the original, 2.41× for a model that takes 41 % of its time.
    latency = measured["latency"]
    if latency is None:
        return _NONE
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
    """Format the metric or the agreement: "88.4 %"; a metric that is no share as a number."""
    score, metric = _read_metric(quality), quality["metric"]
    if score is None:
        return _NONE
    if metric and not is_share(metric):
        return format_number(score)
    if quality["samples"] >= _MANY:
        return format_percent(score, 2)
    return format_percent(score, 1)


def _format_score_change(quality: Measurement, points: float | None) -> str:
    metric = quality["metric"]
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
