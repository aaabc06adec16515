"""The chain as a table: after every pass what the model costs and loses, and what the pass changed.

Rows are the ledger's records that were measured. A column is there where some row has a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.report.figures import bytes_text, decibel, percent, plural, short_count, snr_text

# Columns by key, in order; the name of the task's metric takes the place of "metric".
COLUMNS = {
    "bytes": "Size",
    "parameters": "Parameters",
    "macs": "MACs",
    "speed": "Speed",
    "metric": "metric",
    "snr": "SNR",
}
_METRICS = {"top1": "Top-1", "top5": "Top-5"}
# From so many samples on, a hundredth of a per cent tells something.
_MANY = 1000
# What a missed gate marks.
_MARKS = {"metric_ratio": "metric", "max_drop": "metric", "agreement": "metric"}


@dataclass(frozen=True)
class Cell:
    """One figure of one row.

    Attributes:
        text: the figure; a dash where there is none.
        change: against the row before, with its sign; empty where it is the same or not known.
        missed: whether a gate on it is missed.
    """

    text: str
    change: str = ""
    missed: bool = False


@dataclass(frozen=True)
class Row:
    """What the model was after one pass.

    Attributes:
        name: of the pass; "original" for the graph that the chain began with.
        cells: by key of the column.
        missed: whether some gate of quality is missed.
    """

    name: str
    cells: Mapping[str, Cell]
    missed: bool


@dataclass(frozen=True)
class Table:
    """The chain.

    Attributes:
        columns: heading by key, in order.
        rows: the original first.
        caption: how it was measured.
        remarks: sentences that belong to it.
    """

    columns: Mapping[str, str]
    rows: Sequence[Row]
    caption: str
    remarks: Sequence[str]


def passes(report: Mapping[str, Any]) -> Table | None:
    """The table of a report; None where no pass was measured."""
    records = [record for record in report["ledger"] if record.get("measured")]
    if len(records) < 2:
        return None
    befores = [None, *records[:-1]]
    rows = [_row(record, before) for record, before in zip(records, befores, strict=True)]
    shown = {k for row in rows for k, cell in row.cells.items() if cell.text != _NONE}
    measured = records[-1]["measured"]
    metric = measured["quality"]["metric"]
    names = {
        **COLUMNS,
        "metric": _METRICS.get(metric["name"], metric["name"]) if metric else "Agreement",
    }
    caption = f"On {plural(measured['quality']['samples'], 'sample')} of the evaluation set"
    if measured["latency"]:
        caption += "; speed against the original in fp32: half a second in turns, one thread"
    return Table(
        {key: name for key, name in names.items() if key in shown},
        rows,
        caption + ".",
        # The price of a repair, or why there was none.
        [record["notes"][0] for record in report["ledger"] if record["stage"] == "repair"],
    )


_NONE = "–"


def _row(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> Row:
    measured = record["measured"]
    change = measured["change"] or {}
    missed = {_MARKS.get(gate["name"], "snr") for gate in measured["missed"]}
    value, samples = _metric(measured["quality"]), measured["quality"]["samples"]
    latency, snr = measured["latency"], _snr(measured["quality"])
    cells = {
        "bytes": Cell(bytes_text(record["bytes"]) or _NONE, _share(change, "bytes", before)),
        "parameters": Cell(_count(record["parameters"]), _share(change, "parameters", before)),
        "macs": Cell(_count(measured["macs"]), _share(change, "macs", before)),
        "speed": Cell(
            f"{latency['ratio']:.2f}×" if latency else _NONE,
            _signed(change.get("latency"), 0.005, lambda v: f"{percent(v, 0)} ms"),
        ),
        "metric": Cell(
            _NONE if value is None else percent(value, 2 if samples >= _MANY else 1),
            _signed(change.get("metric_points"), 0.005, lambda v: f"{v:.2f} points"),
            "metric" in missed,
        ),
        "snr": Cell(snr, _signed(change.get("snr_db"), 0.05, decibel), "snr" in missed),
    }
    name = "original" if before is None else record["stage"]
    return Row(name, cells, bool(missed))


def _metric(quality: Mapping[str, Any]) -> float | None:
    """The model's task metric, else the share of decisions that are the original's."""
    if quality["metric"]:
        return float(quality["metric"]["model"])
    shares = [o.get("top1_agreement") for o in quality["outputs"].values()]
    return min((share for share in shares if share is not None), default=None)


def _snr(quality: Mapping[str, Any]) -> str:
    from edgepack.report.findings import worst

    metrics = worst(quality["outputs"])
    return snr_text(metrics) if metrics else _NONE


def _count(value: int | None) -> str:
    return _NONE if value is None else short_count(value)


def _share(change: Mapping[str, Any], key: str, before: Mapping[str, Any] | None) -> str:
    """A difference as the share of what was there before."""
    difference = change.get(key)
    if before is None or not difference:
        return ""
    was = before["measured"]["macs"] if key == "macs" else before[key]
    return _signed(difference / was, 0.0, lambda v: percent(v, 0)) if was else ""


def _signed(value: float | None, least: float, text: Any) -> str:
    """A change with its sign; empty where it rounds to nothing."""
    if value is None or abs(value) <= least:
        return ""
    return ("−" if value < 0 else "+") + str(text(abs(value)))
