"""A bundle that is slower or larger than what was given says so in its first line."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from edgepack.report import (
    ReportError,
    findings,
    list_cautions,
    render_html,
    render_terminal,
    validate,
)
from support import report_cases as cases

BUSY = ["other processes took 1.4 of 2 cores, load 3.9", "rounds differ by 38 %"]


def slower(ratio: float = 0.57) -> dict[str, Any]:
    """The passed example, at this speed."""
    report = cases.chained()
    report["latency"]["model"]["p50"] = report["latency"]["original"]["p50"] / ratio
    report["latency"].update(ratio=ratio)
    del report["latency"]["rounds"]
    report["slower"] = ratio < 1
    return with_cautions(report)


def sized(ratio: float, basis: str = "file") -> dict[str, Any]:
    """The passed example, at this share of the bytes, and no faster."""
    report = slower(1.0)
    original = 1_000_000
    report["sizes"] = {
        "original_bytes": original,
        "model_bytes": round(ratio * original),
        "ratio": ratio,
        "basis": basis,
        "file_bytes": original if basis == "file" else 3 * original,
        "export_bytes": original,
    }
    return with_cautions(report)


def with_cautions(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "cautions": list_cautions(report)}


def shown(report: dict[str, Any]) -> str:
    stream = StringIO()
    render_terminal(report, Console(file=stream, width=120, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("report", "title", "codes"),
    [
        (slower(), "PASS, but slower than fp32: 0.57×", ["slower"]),
        (sized(2.75), "PASS, but larger than efficientnet-lite0.pth: 2.75×", ["larger"]),
        (sized(1.2, "export"), "PASS, but larger than its fp32 graph: 1.20×", ["larger"]),
        (
            sized(0.988),
            "PASS, but 98.8 % of the bytes of efficientnet-lite0.pth and no faster",
            ["no-gain"],
        ),
        (slower(0.97), "PASS", []),
        (sized(0.34), "PASS", []),
    ],
)
def test_the_verdict_names_what_it_costs(
    report: dict[str, Any], title: str, codes: list[str]
) -> None:
    report["source"]["path"] = "efficientnet-lite0.pth"
    report = with_cautions(report)
    validate(report)
    assert [caution["code"] for caution in report["cautions"]] == codes
    assert findings.format_title(report) == title
    assert title in shown(report)
    page = render_html(report).replace("\u00a0", " ")
    assert f"{title}: {report['name']}" in page
    assert ('class="verdict pass cautious"' in page) == bool(codes)


def test_slower_and_larger_are_named_both() -> None:
    report = slower(0.24)
    report["sizes"].update(model_bytes=2 * report["sizes"]["original_bytes"], ratio=2.0)
    title = findings.format_title(with_cautions(report))
    assert title == "PASS, but slower than fp32: 0.24× and larger than the original: 2.00×"


def test_the_same_graph_is_not_called_slower() -> None:
    report = slower(0.9)
    report["ledger"] = [r for r in report["ledger"] if r["stage"] in ("simplify", "latency")]
    assert list_cautions(report) == []


def test_a_failed_bundle_keeps_its_verdict_and_says_it_below() -> None:
    report = with_cautions(cases.failed())
    assert findings.format_title(report) == "FAIL"
    assert "It is slower than fp32: 0.89×." in shown(report)
    assert "It is slower than fp32: 0.89×." in render_html(report).replace("\u00a0", " ")


@pytest.mark.parametrize("stated", [[], [{"code": "larger", "ratio": 2.0, "text": "larger"}]])
def test_a_report_that_hides_its_caution_contradicts_itself(stated: list[Any]) -> None:
    with pytest.raises(ReportError) as refusal:
        validate({**slower(), "cautions": stated})
    assert refusal.value.code == "report-contradiction"
    assert "cautions" in refusal.value.why


def test_the_size_of_a_checkpoint_that_holds_more_than_weights_is_told_beside() -> None:
    report = sized(0.26, "export")
    assert findings.describe_size(report).startswith("26.0 % of its fp32 graph; ")
    assert findings.describe_size(report).endswith(" has 3.00 MB")
    assert findings.describe_size(sized(0.26)).startswith("26.0 % of efficientnet_lite0")
    assert findings.describe_size(cases.passed()).endswith(" of the original")


def test_a_disturbed_latency_is_headlined_nowhere_unmarked() -> None:
    report = slower(2.31)
    report["latency"].update(
        load={"before": 0.4, "after": 3.9, "cores": 2, "others": 1.4}, spread=0.38, disturbed=BUSY
    )
    validate(report)
    words = f"about 2.3× faster than fp32, disturbed: {'; '.join(BUSY)}"
    assert findings.describe_speed(report) == words
    for text in (" ".join(shown(report).split()), render_html(report).replace("\u00a0", " ")):
        assert "about 2.3×" in text
        assert "about 6.40 ms" in text or "about 2.77 ms" in text
        assert "2.31×" not in text.replace("2.31×</span>", "")
    slow = slower(0.57)
    slow["latency"]["disturbed"] = BUSY
    assert findings.format_title(with_cautions(slow)) == (
        "PASS, but slower than fp32: about 0.6×, disturbed"
    )


def test_the_forms_of_the_layers_are_told() -> None:
    report = cases.chained()
    layer = {"name": "a", "operator": "LSTM", "reason": "recurrent"}
    details = {
        "mode": "static",
        "layers_quantized": 3,
        "layers_dynamic": [layer],
        "layers_weights": [layer, layer],
        "layers_float": [],
    }
    record = next(r for r in report["ledger"] if r["stage"] == "quantize")
    assert findings.describe_forms(report) == ""
    record["details"] = details
    told = "Layers: 3 in static int8, 1 in dynamic int8, 2 with int8 weights and float arithmetic."
    assert findings.describe_forms(report) == told
    assert told in " ".join(shown(report).split())
    assert told in render_html(report)
