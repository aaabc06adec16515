"""What the report says of CPUs that were emulated, and of a host that stood in for another."""

from __future__ import annotations

import copy
import html
import io
import re
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from edgepack import report as reports
from edgepack.report import ReportError, render_html, render_terminal, validate
from support import report_cases as cases


def question(report: Mapping[str, Any], snr_db: float | None) -> dict[str, Any]:
    """The report's fidelity, as a CPU would have answered; None for the same bits."""
    found = copy.deepcopy(report["fidelity"])
    found["samples"] = 4
    if snr_db is not None:
        found["outputs"]["logits"].update(snr_db=snr_db, bit_exact=False)
        found["gates"][0].update(measured=False, passed=False)
        found["passed"] = False
    return dict(found)


def emulated(snr_db: float | None = None) -> dict[str, Any]:
    """A report of a build with two emulated CPUs; the second one answers at that SNR."""
    report = cases.passed()
    cpus = {"Haswell": question(report, None), "Skylake-Client": question(report, snr_db)}
    report["emulated"] = cpus
    if snr_db is not None:
        report.update(verdict="FAIL", reasons=[{"code": "gate-missed", "text": "missed"}])
        report["fidelity"] = {**cpus["Skylake-Client"], "device": "Skylake-Client, emulated"}
    return report


def stood_in() -> dict[str, Any]:
    """A report of a build for another architecture than the host's."""
    report = {**cases.passed(), "stands_in": True, "latency": None}
    report["target"] = {**report["target"], "name": "arm-qnnpack"}
    report["emulated"] = {cpu: question(report, None) for cpu in ("cortex-a53", "neoverse-n1")}
    report["fidelity"] = {**report["emulated"]["cortex-a53"], "device": "cortex-a53, emulated"}
    return report


def page(report: Mapping[str, Any]) -> str:
    """The page's text, single spaces."""
    body = render_html(report).partition("<body")[2]
    text = re.sub(r"<[^>]*>", " ", body).replace("\u00a0", " ")
    return " ".join(html.unescape(text).replace("\u00a0", " ").split())


def terminal(report: Mapping[str, Any]) -> list[str]:
    stream = io.StringIO()
    render_terminal(report, Console(file=stream, width=100))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_every_cpu_has_a_row() -> None:
    report = emulated()
    validate(report)
    shown = terminal(report)
    assert "✓ Haswell, emulated same bits" in shown
    assert "✓ Skylake-Client, emulated same bits" in shown
    assert "On Haswell and Skylake-Client, emulated: the same bits on " in " ".join(shown)
    assert "Haswell same bits 4 reference samples ✓ passed" in page(report)


def test_one_that_missed_is_seen() -> None:
    report = emulated(8.4)
    validate(report)
    shown = terminal(report)
    assert "✓ Haswell, emulated same bits" in shown
    assert "✗ Skylake-Client, emulated 8.4 dB" in shown
    # Nothing was lost on the way: the device computes something else.
    assert "First loss" not in " ".join(shown)
    assert "First loss" not in page(report)
    assert "Skylake-Client 8.4 dB 4 reference samples ✗ missed" in page(report)
    assert "by Skylake-Client, emulated" in page(report)


def test_a_host_that_stood_in_is_called_one() -> None:
    report = stood_in()
    validate(report)
    (memory,) = [line for line in terminal(report) if line.startswith("memory")]
    assert memory.endswith("peak of the loader's process on the build host")
    text = page(report)
    assert "on the build host." in text
    assert "Measured on the build host, not on arm-qnnpack" in text
    said = " ".join(terminal(report))
    assert "On cortex-a53, emulated, the bundle reproduces the build host's answers bit" in said
    assert "On neoverse-n1, emulated: the same bits on " in said
    assert "build host, not on" not in page(cases.passed())


def test_a_missed_cpu_cannot_be_passed_over() -> None:
    report = {**emulated(8.4), "verdict": "PASS", "reasons": []}
    report["fidelity"] = cases.passed()["fidelity"]
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert caught.value.code == "report-contradiction"
    assert "Skylake-Client, emulated, missed it" in caught.value.why


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("emulated", ["Haswell"], "emulated"),
        ("emulated", {"Haswell": {"passed": True}}, "emulated.Haswell"),
        ("stands_in", "yes", "stands_in"),
    ],
)
def test_a_malformed_answer_is_refused(key: str, value: object, path: str) -> None:
    with pytest.raises(ReportError) as caught:
        reports.validate({**emulated(), key: value})
    assert caught.value.code == "report-invalid"
    assert path in caught.value.why
