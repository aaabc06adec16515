"""The terminal summary: short, plain without colour, and whole on a narrow terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgepack.report import render_terminal
from support import report_cases as cases


def draw(report: dict[str, Any], width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    render_terminal(report, Console(file=stream, width=width, **options))
    stream.flush()
    return raw.getvalue().decode(encoding)


def lines(report: dict[str, Any], **options: Any) -> list[str]:
    return [" ".join(line.split()) for line in draw(report, **options).splitlines()]


def test_a_pass_fits_on_a_terminal() -> None:
    shown = lines(cases.passed())
    assert len(shown) <= 31
    assert shown[0] == "✓ PASS efficientnet-lite0 → cpu-fbgemm"
    for line in (
        "size 18.55 MB → 4.90 MB 26.4 % of the original",
        "9.87 MB the bundle file, with its loader",
        "latency 6.40 ms → 3.30 ms 1.94× faster than fp32, p90 3.46 ms",
        "quality ✓ SNR 19.8 dB ≥ 19.0 dB",
        "✓ Top-1 agreement 98.6 % ≥ 98.0 %",
        "fidelity ✓ Bit-exact yes required",
        "quantize done 48 s 4.90 MB 19.6 dB",
        "engine skipped 4.90 MB",
        "! not verified on CPUs without VNNI (--no-emulate)",
        "python3 efficientnet-lite0-cpu-fbgemm.edgepack verify # on the device",
    ):
        assert line in shown


def test_a_failure_says_what_was_missed_and_where() -> None:
    shown = " ".join(lines(cases.failed()))
    assert shown.startswith("✗ FAIL")
    assert "✗ SNR 9.6 dB ≥ 19.0 dB" in shown
    assert (
        "First loss at quantize: SNR of logits fell from the rounding error of fp32 to 9.4 dB."
        in shown
    )
    assert "int8 is 1.12× slower than fp32" in shown


def test_unverified_comes_first_and_offers_the_cure() -> None:
    shown = lines(cases.unverified())
    assert shown[0].startswith("▲ UNVERIFIED: random samples")
    assert shown[1].startswith("Nothing was verified on real inputs")
    assert "✓ PASS" not in " ".join(shown)
    assert "--calibration PATH" in shown[-1]


@pytest.mark.parametrize("make", [cases.passed, cases.failed, cases.unverified])
def test_no_control_codes_without_a_terminal(make: Any) -> None:
    assert "\x1b" not in draw(make())


def test_no_colour_keeps_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = draw(cases.failed(), force_terminal=True)
    for colour in ("\x1b[31", "\x1b[1;31", "\x1b[32", "\x1b[33"):
        assert colour not in shown
    assert "FAIL" in shown


@pytest.mark.parametrize("width", [30, 40, 63])
def test_a_narrow_terminal_loses_no_figure(width: int) -> None:
    shown = draw(cases.failed(), width=width)
    # Commands are never broken: they are there to be copied.
    wrapped = [line for line in shown.splitlines() if "efficientnet-lite0-cpu" not in line]
    assert max(map(len, wrapped)) <= width
    flat = " ".join(shown.split())
    for figure in ("9.6 dB", "86.6 %", "7.20 ms", "4.90 MB", "quantize"):
        assert figure in flat
    assert "python3 efficientnet-lite0-cpu-fbgemm.edgepack verify" in shown


def test_an_ascii_terminal() -> None:
    shown = draw(cases.failed(), encoding="ascii")
    assert "18.55 MB -> 4.90 MB" in shown
    assert ">= 19.0 dB" in shown


def test_foreign_text_is_literal() -> None:
    shown = draw(cases.hostile(), width=400, force_terminal=True, no_color=True)
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "[red]\\x1b[2J" in shown


def test_many_gates_and_warnings_are_cut_and_counted() -> None:
    report = cases.passed()
    gate = report["quality"]["gates"][0]
    report["quality"]["gates"] = [{**gate, "output": f"y{i}"} for i in range(40)]
    report["quality"]["gates"][-1].update(passed=False, decisive=False, measured=1.0)
    report["outputs"] *= 2
    report["warnings"] = [f"warning {i}" for i in range(9)]
    shown = lines(report)
    assert "quality ✗ SNR of y39 1.0 dB ≥ 19.0 dB not decisive" in shown
    assert "and 34 more gates" in shown
    assert "and 6 more warnings in the report" in shown


def test_what_was_not_measured_is_said() -> None:
    report = cases.passed()
    report["latency"] = None
    report["quality"]["gates"] = []
    shown = lines(report)
    assert "latency not measured" in shown
    assert "quality no gate was set" in shown
