"""The chain as a table: every pass with what it left and what it changed."""

from __future__ import annotations

import copy
import io

import pytest
from rich.console import Console

from edgepack.report import ReportError, render_html, render_terminal, validate
from edgepack.report.figures import format_short_count
from edgepack.report.passes import tabulate_passes
from support import report_cases as cases


def draw(report: dict, width: int) -> str:
    stream = io.StringIO()
    render_terminal(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_every_pass_has_its_figures_and_what_it_changed() -> None:
    table = tabulate_passes(cases.chained())
    assert table is not None
    assert list(table.columns.values()) == ["Size", "Parameters", "MACs", "Speed", "Top-1", "SNR"]
    assert [
        (row.name, *[(cell.text, cell.change) for cell in row.cells.values()])
        for row in table.rows
    ] == [
        ("original", ("18.55 MB", ""), ("4.65 M", ""), ("386 M", ""), ("1.00×", ""),
         ("88.4 %", ""), ("119.8 dB", "")),
        ("prune", ("13.01 MB", "−30 %"), ("3.26 M", "−30 %"), ("270 M", "−30 %"),
         ("1.32×", "−24 % time"), ("87.1 %", "−1.30 points"), ("24.1 dB", "−95.7 dB")),
        ("quantize", ("3.42 MB", "−74 %"), ("3.26 M", ""), ("270 M", ""),
         ("2.41×", "−45 % time"), ("84.2 %", "−2.90 points"), ("9.6 dB", "−14.5 dB")),
        ("repair", ("4.11 MB", "+20 %"), ("3.26 M", ""), ("270 M", ""),
         ("1.94×", "+24 % time"), ("87.1 %", "+2.92 points"), ("19.8 dB", "+10.2 dB")),
    ]  # fmt: skip
    assert [row.missed for row in table.rows] == [False, False, True, False]
    quantized = table.rows[2].cells
    assert [key for key, cell in quantized.items() if cell.missed] == ["metric", "snr"]
    assert table.remarks == ["2 of 51 layers back to float: +2.92 points, +10 % time."]


def test_the_report_is_valid_and_its_changes_must_add_up() -> None:
    report = cases.chained()
    validate(report)
    for key in ("bytes", "parameters"):
        wrong = copy.deepcopy(report)
        wrong["ledger"][-5]["measured"]["change"][key] += 1
        with pytest.raises(ReportError, match=f"change.{key}") as raised:
            validate(wrong)
        assert raised.value.code == "report-contradiction"
    wrong = copy.deepcopy(report)
    next(r for r in wrong["ledger"] if r["stage"] == "prune")["measured"]["change"] = None
    with pytest.raises(ReportError, match="not the first"):
        validate(wrong)
    wrong = copy.deepcopy(report)
    row = next(r for r in wrong["ledger"] if r["stage"] == "quantize")
    row["measured"]["missed"][0]["passed"] = True
    with pytest.raises(ReportError, match="among those missed"):
        validate(wrong)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_it_fits_the_terminal(width: int) -> None:
    shown = draw(cases.chained(), width)
    table = shown.split("after", 1)[1].split("stage", 1)[0].splitlines()
    assert max(map(len, table)) <= min(width, 100)
    flat = [" ".join(line.split()) for line in table]
    assert "prune 13.01 MB 3.26 M 270 M 1.32× 87.1 % 24.1 dB" in flat
    assert "−30 % −30 % −30 % −24 % time −1.30 points −95.7 dB" in flat
    assert "2 of 51 layers back to float: +2.92 points, +10 % time." in flat
    assert len(shown.splitlines()) <= 43


@pytest.mark.parametrize("width", [48, 63])
def test_a_narrow_terminal_keeps_size_metric_and_snr(width: int) -> None:
    shown = draw(cases.chained(), width)
    wrapped = [line for line in shown.splitlines() if "efficientnet-lite0-cpu" not in line]
    assert max(map(len, wrapped)) <= width
    flat = " ".join(shown.split())
    for figure in ("13.01 MB", "24.1 dB", "repair"):
        assert figure in flat


def test_the_page_has_it() -> None:
    page = render_html(cases.chained()).replace("\u00a0", " ")
    assert "The chain, pass by pass" in page
    for text in ("270 M", "−1.30 points", "misses a gate", "back to float: +2.92 points"):
        assert text in page
    assert page.count("misses a gate") == 1


def test_what_was_not_measured_has_no_column() -> None:
    report = cases.chained()
    for record in report["ledger"]:
        if record.get("measured"):
            record["measured"].update(latency=None, macs=None)
            record["measured"]["quality"]["metric"] = None
            change = record["measured"]["change"]
            if change:
                change.update(latency=None, macs=None, metric_points=-1.4)
    table = tabulate_passes(report)
    assert table is not None
    assert list(table.columns.values()) == ["Size", "Parameters", "Agreement", "SNR"]
    assert "speed" not in table.caption
    assert table.rows[1].cells["metric"].change == "−1.40 points"
    validate(report)


def test_a_report_of_one_measured_graph_has_no_table() -> None:
    report = cases.chained()
    for record in report["ledger"][3:]:
        record["measured"] = None
    assert tabulate_passes(report) is None
    assert "SNR after" in draw(report, 80)
    assert "The chain, pass by pass" not in render_html(report)
    # Nor does one of an earlier version, which has no such key.
    assert tabulate_passes(cases.passed()) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1348, "1.35 k"), (4_652_008, "4.65 M"), (385_891_968, "386 M"),
     (999_600, "1.00 M"), (12_345_678_901, "12.3 G")],
)  # fmt: skip
def test_large_counts(count: int, text: str) -> None:
    assert format_short_count(count) == text
