"""Reports that must be refused, one per way of being wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepack.report import ReportError, validate

EXAMPLE = Path(__file__).parents[1] / "support" / "report_example.json"


@pytest.fixture
def report() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return document


def put(document: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        document = document[int(key) if key.isdigit() else key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "edgepack-report/2", "format"),
        ("verdict", "perhaps", "verdict"),
        ("created", "yesterday", "created"),
        ("extra", 1, "extra"),
        ("sizes.original_bytes", 0, "sizes.original_bytes"),
        ("sizes.ratio", float("nan"), "sizes.ratio"),
        ("latency.model.p50", float("inf"), "latency.model.p50"),
        ("latency.model.p50", "fast", "latency.model.p50"),
        ("quality.outputs.logits.snr_db", "inf", "quality.outputs.logits.snr_db"),
        ("quality.outputs.logits.top1_agreement", 98.6, "quality.outputs.logits.top1_agreement"),
        ("ledger.0.status", "maybe", "ledger[0].status"),
        ("samples.calibration.count", -1, "samples.calibration.count"),
        ("warnings", ["a", 2], "warnings[1]"),
        ("source.parameters", 1.5, "source.parameters"),
    ],
)
def test_another_shape(report: dict[str, Any], path: str, value: object, said: str) -> None:
    put(report, path, value)
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert caught.value.code == "report-invalid"
    assert caught.value.exit_code == 2
    assert said in caught.value.why


def test_every_fault_is_named(report: dict[str, Any]) -> None:
    del report["bundle"]["content_digest"]
    report["memory"]["peak_rss_bytes"] = "much"
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert "content_digest" in caught.value.why
    assert "memory.peak_rss_bytes" in caught.value.why


@pytest.mark.parametrize("document", [{}, [], None, 7])
def test_not_a_report_at_all(document: Any) -> None:
    with pytest.raises(ReportError) as caught:
        validate(document)
    assert caught.value.code == "report-invalid"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quality.passed": False, "verdict": "FAIL"}, "quality.passed"),
        ({"quality.gates.0.passed": False, "quality.passed": False}, "verdict is 'PASS'"),
        ({"verdict": "FAIL"}, "every question passed"),
        ({"quality.gates.0.measured": 12.0}, "snr_db"),
        ({"quality.gates.1.bound": 0.999}, "agreement"),
        ({"fidelity.gates.0.measured": False}, "bit_exact"),
        ({"sizes.ratio": 3.78}, "sizes.ratio"),
        ({"latency.ratio": 0.51}, "latency.ratio"),
        ({"slower": True}, "slower"),
        ({"latency": None, "slower": True}, "no latency"),
    ],
)
def test_a_contradiction(report: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    for path, value in changes.items():
        put(report, path, value)
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert caught.value.code == "report-contradiction"
    assert said in caught.value.why


def test_an_allowed_miss_is_no_contradiction(report: dict[str, Any]) -> None:
    gate = report["quality"]["gates"][1]
    gate["measured"] = 15 / 16
    with pytest.raises(ReportError):
        validate(report)
    gate["note"] = "one miss is allowed: 16 samples are too few to tell this rate"
    validate(report)


def test_a_gate_that_is_not_decisive_does_not_decide(report: dict[str, Any]) -> None:
    gate = report["quality"]["gates"][0]
    gate.update(measured=12.0, passed=False, decisive=False)
    validate(report)
