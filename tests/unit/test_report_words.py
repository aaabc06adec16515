"""Figures and sentences: rounding never flatters, and what is said is what was measured."""

from __future__ import annotations

import pytest

from edgepack.report import describe_gate, figures, findings
from edgepack.report.gates import format_gate
from support import report_cases as cases


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (18548870, "18.55 MB"),
        (999_999_999, "1.00 GB"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert figures.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (48.3, "48 s"),
        (99.7, "1 min 40 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert figures.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.986, "98.6 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (0.9998, "99.98 %"),
        (0.00004, "0.004 %"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(share: float, text: str) -> None:
    assert figures.format_percent(share) == text


def test_printable_lets_nothing_steer_the_reader() -> None:
    text = figures.printable("a\x1b[31mb\u202ec\nd\x9be\ud800")
    assert text == "a\\x1b[31mb\\u202ec d\\x9be\\ud800"


def test_fit_escapes_what_an_encoding_lacks() -> None:
    assert figures.fit("6.4 → 3.3 ≥ naïve", "ascii") == "6.4 -> 3.3 >= na\\xefve"
    assert figures.fit("6.4 → 3.3", "utf-8") == "6.4 → 3.3"


def test_a_narrow_miss_is_seen() -> None:
    row = format_gate(
        {"name": "snr_db", "output": "y", "bound": 19.0, "measured": 18.996, "passed": False}
    )
    assert (row.measured, row.bound, row.margin) == ("18.996 dB", "≥ 19.000 dB", "−0.004 dB")


def test_gates_in_words() -> None:
    rows = findings.list_gates(cases.passed())
    assert [(row.label, row.measured, row.bound, row.margin) for row in rows] == [
        ("SNR", "19.8 dB", "≥ 19.0 dB", "+0.8 dB"),
        ("Top-1 agreement", "98.6 %", "≥ 98.0 %", "+0.6 points"),
        ("Top-1 relative to original", "99.8 %", "≥ 99.0 %", "+0.8 points"),
        ("Bit-exact", "yes", "required", ""),
    ]


@pytest.mark.parametrize(
    ("gate", "line"),
    [
        (
            {"name": "snr_db", "output": "y", "bound": 30, "measured": None, "passed": True},
            "SNR of y: exact (≥ 30.0 dB)",
        ),
        (
            {"name": "max_drop", "output": "top1", "bound": 0.3, "measured": 1.25, "passed": False},
            "Drop of Top-1: 1.25 points (≤ 0.30 points)",
        ),
        (
            {"name": "finite", "output": "y", "bound": 0, "measured": 7, "passed": False},
            "Non-finite values of y: 7 (≤ 0)",
        ),
        (
            {"name": "bit_exact", "output": "y", "bound": True, "measured": False, "passed": False},
            "Bit-exact of y: no (required)",
        ),
        (
            {"name": "new_gate", "output": None, "bound": 2, "measured": 3, "passed": True},
            "new gate: 3 (2)",
        ),
    ],
)
def test_one_gate_in_one_line(gate: dict[str, object], line: str) -> None:
    assert describe_gate(gate) == line


def test_the_first_loss_is_where_snr_fell() -> None:
    loss = findings.find_first_loss(cases.failed()["ledger"])
    assert loss is not None
    assert str(loss) == "quantize: SNR of logits fell from the rounding error of fp32 to 9.4 dB"


def test_exact_stages_lose_nothing() -> None:
    ledger = cases.passed()["ledger"][:4]
    for record in ledger:
        if record["parity"]:
            record["parity"]["logits"]["snr_db"] = None
    assert findings.find_first_loss(ledger) is None


def test_a_loss_is_told_from_the_stage_before() -> None:
    ledger = [
        {"stage": stage, "parity": {"y": {"snr_db": snr}}}
        for stage, snr in (("export", 88.0), ("prune", 86.0), ("quantize", 20.0))
    ]
    loss = findings.find_first_loss(ledger)
    assert str(loss) == "quantize: SNR of y fell from 86.0 dB to 20.0 dB"
    assert findings.find_first_loss(ledger, drop_db=70.0) is None


def test_values_that_are_not_finite_are_a_loss() -> None:
    metrics = {"snr_db": -999.0, "nonfinite": 12}
    loss = findings.find_first_loss([{"stage": "half", "parity": {"y": metrics}}])
    assert str(loss) == "half: SNR of y fell from the rounding error of fp32 to 12 not finite"


def test_the_verdict_says_what_was_proved_and_on_what() -> None:
    said = findings.describe_verdict(cases.passed())
    for part in (
        "500 evaluation samples",
        "98.6 %",
        "88.2 % top-1 (original: 88.4 %)",
        "19.8 dB",
    ):
        assert part in said
    assert "bit for bit on 16 reference samples" in said


def test_the_verdict_of_a_failure_counts_what_was_missed() -> None:
    said = findings.describe_verdict(cases.failed())
    assert said.startswith("3 of 4 gates missed.")
    assert "not delivered" in said


def test_nothing_is_claimed_without_real_calibration() -> None:
    said = findings.describe_verdict(cases.unverified())
    assert said.startswith("Nothing was verified on real inputs")
    assert "passed" not in said


def test_fidelity_is_bit_exact_only_where_every_output_is() -> None:
    report = cases.passed()
    outputs = report["fidelity"]["outputs"]
    outputs["state"] = {**outputs["logits"], "bit_exact": False, "snr_db": 61.3}
    said = findings.describe_verdict(report)
    assert "bit for bit" not in said
    assert "SNR of 61.3 dB" in said


def test_slower_is_said_plainly() -> None:
    assert (
        findings.describe_speed(cases.failed()) == "int8 is 1.12× slower than fp32 on this machine"
    )
    report = cases.failed()
    del report["target"]["precision"]
    assert findings.describe_speed(report) == (
        "the optimized model is 1.12× slower than the original on this machine"
    )


@pytest.mark.parametrize(
    ("model", "original", "said"),
    [
        (0.245204, 0.245185, "brier 0.24520 (original: 0.24518)"),
        (0.25, 0.25, "brier 0.25 (original: 0.25)"),
        (1234.0, 1235.0, "brier 1234 (original: 1235)"),
    ],
)
def test_both_metrics_have_the_same_digits(model: float, original: float, said: str) -> None:
    report = cases.passed()
    report["quality"]["metric"] = {
        "name": "brier", "model": model, "original": original, "drop_points": 0.0, "samples": 600
    }  # fmt: skip
    assert said in findings.describe_verdict(report)


def test_commands_quote_the_bundle() -> None:
    report = cases.passed()
    report["bundle"]["path"] = "my model; rm -rf.edgepack"
    commands = [command for command, _ in findings.list_next_commands(report)]
    assert commands[0] == "python3 'my model; rm -rf.edgepack' verify"
