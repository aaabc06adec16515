"""Gates at their bounds, and with fewer samples than a bound can be told from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgepack.runtime.parity.gates import describe_gate, judge, judge_reference
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor

FINE: dict[str, Any] = {
    "compared": "values",
    "part": "",
    "parts": [],
    "snr_db": 30.0,
    "cosine": 0.99,
    "bit_exact": False,
    "nonfinite": 0,
    "decisions": 0,
    "top1_agreement": None,
}


def passed(bounds: dict[str, Any], **found: Any) -> bool:
    (gate,) = judge(bounds, {"y": {**FINE, **found}})
    json.dumps(gate, allow_nan=False)
    assert describe_gate(gate).startswith("ok  " if gate["passed"] else "FAIL")
    return bool(gate["passed"])


@pytest.mark.parametrize(
    ("snr", "holds"), [(30.0, True), (29.999, False), (None, True), (-999.0, False)]
)
def test_snr(snr: float | None, holds: bool) -> None:
    assert passed({"snr_db": 30}, snr_db=snr) is holds


@pytest.mark.parametrize(("cosine", "holds"), [(0.99, True), (0.98999, False)])
def test_cosine(cosine: float, holds: bool) -> None:
    assert passed({"cosine": 0.99}, cosine=cosine) is holds


@pytest.mark.parametrize("exact", [True, False])
def test_bit_exact(exact: bool) -> None:
    assert passed({"bit_exact": True}, bit_exact=exact) is exact


def test_bit_exact_that_is_not_asked_for_is_no_gate() -> None:
    assert judge({"bit_exact": False}, {"y": FINE}) == []


@pytest.mark.parametrize(
    ("misses", "count", "holds"),
    [(3, 100, True), (4, 100, False), (30, 1000, True), (31, 1000, False), (0, 10, True)],
)
def test_agreement(misses: int, count: int, holds: bool) -> None:
    share = (count - misses) / count
    assert passed({"agreement": 0.97}, decisions=count, top1_agreement=share) is holds


@pytest.mark.parametrize(("misses", "holds"), [(1, True), (2, False)])
def test_one_miss_is_allowed_where_no_rate_can_be_told(misses: int, holds: bool) -> None:
    """From 20 decisions 97 % cannot be told: one miss is 95 % already."""
    bounds, share = {"agreement": 0.97}, (20 - misses) / 20
    assert passed(bounds, decisions=20, top1_agreement=share) is holds
    (gate,) = judge(bounds, {"y": {**FINE, "decisions": 20, "top1_agreement": share}})
    assert ("20 samples are too few" in gate["note"]) is holds
    assert gate["note"] in describe_gate(gate)


def test_agreement_is_not_applied_to_what_decides_nothing() -> None:
    assert judge({"agreement": 0.97}, {"y": FINE}) == []


def metric(original: float, model: float, samples: int = 1000) -> dict[str, Any]:
    drop = 100 * (original - model)
    return {
        "name": "top1", "original": original, "model": model, "samples": samples,
        "drop_points": drop,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "holds"), [(0.8, True), (0.792, True), (0.791, False), (0.9, True)]
)
def test_metric_ratio(model: float, holds: bool) -> None:
    """99 % of 80 % is 79.2 %: of 800 right answers 8 may be lost."""
    (gate,) = judge({"metric_ratio": 0.99}, {}, metric(0.8, model))
    assert gate["passed"] is holds
    assert gate["measured"] == pytest.approx(model / 0.8)


@pytest.mark.parametrize(("model", "holds"), [(0.797, True), (0.796, False)])
def test_max_drop(model: float, holds: bool) -> None:
    (gate,) = judge({"max_drop": 0.3}, {}, metric(0.8, model))
    assert gate["passed"] is holds


def test_no_model_keeps_a_share_of_an_original_that_is_never_right() -> None:
    for model in (0.0, 0.5):
        (gate,) = judge({"metric_ratio": 0.99}, {}, metric(0.0, model))
        assert (gate["passed"], gate["measured"]) == (False, 0.0)


def test_gates_on_the_metric_need_one() -> None:
    assert judge({"metric_ratio": 0.99, "max_drop": 1}, {"y": FINE}) == []


def test_a_number_that_is_not_finite_fails_whatever_is_asked() -> None:
    (gate,) = judge({}, {"y": {**FINE, "nonfinite": 3}})
    assert not gate["passed"]
    assert "3 values are not finite" in describe_gate(gate)


def test_every_output_is_judged() -> None:
    broken = Parity(Tensor("bad", "float64", (3,)), [Part(None, (), 1.0)])
    broken.update(np.ones(3), np.array([1.0, 1.0, np.nan]))
    gates = judge({"snr_db": 10}, {"good": FINE, "bad": broken.result()})
    assert [(g["output"], g["name"], g["passed"]) for g in gates] == [
        ("good", "snr_db", True),
        ("bad", "finite", False),
        ("bad", "snr_db", False),
    ]


def test_what_a_gate_says() -> None:
    gates = judge(
        {"snr_db": 30, "agreement": 0.97},
        {"y": {**FINE, "snr_db": None, "decisions": 200, "top1_agreement": 0.985}},
    )
    assert [describe_gate(gate) for gate in gates] == [
        "ok   y: SNR exact (at least 30 dB)",
        "ok   y: top-1 agreement 98.5 % (at least 97 %)",
    ]


def test_a_gate_names_the_part_that_decided() -> None:
    (gate,) = judge({"snr_db": 10}, {"y": {**FINE, "snr_db": -2.0, "part": "[:, 4:84]"}})
    assert describe_gate(gate) == "FAIL y[:, 4:84]: SNR -2.0 dB (at least 10 dB)"


@pytest.mark.parametrize("bounds", [{"snr_db": 10}, {"snr_db": 10, "agreement": 0.97}])
def test_integers_are_held_to_agreement_whatever_is_stated(bounds: dict[str, Any]) -> None:
    equal = {**FINE, "compared": "equality", "snr_db": None, "decisions": 1000}
    (gate,) = judge(bounds, {"y": {**equal, "top1_agreement": 0.96}})
    assert (gate["name"], gate["passed"]) == ("agreement", False)
    (gate,) = judge(bounds, {"y": {**equal, "top1_agreement": 0.98}})
    assert gate["passed"]


def on_reference(
    worst: float, share: float, fidelity: dict[str, Any], part: float = 1.0
) -> dict[str, bool]:
    """Judge reference samples: the build saw errors up to 0.01 and 9 of 10 equal decisions."""

    def metrics(error: float, agreement: float) -> dict[str, Any]:
        errors = [{"part": "", "snr_db": 0.0, "worst_error": error, "max_abs": 1.0}]
        return {"y": {**FINE, "parts": errors, "decisions": 10, "top1_agreement": agreement}}

    gates = judge_reference(
        metrics(0.01, 0.97),
        metrics(0.005, 0.9),
        metrics(worst, share),
        {"y": [Part(None, (), part)]},
        fidelity,
    )
    assert all(describe_gate(gate) for gate in gates)
    return {gate["name"]: gate["passed"] for gate in gates}


def test_no_reference_sample_may_be_worse_than_the_worst_that_the_build_saw() -> None:
    exact = {"bit_exact": True}
    assert on_reference(0.01, 0.9, exact) == {"worst_db": True, "agreement": True}
    assert not on_reference(0.0103, 0.9, exact)["worst_db"]
    assert not on_reference(0.01, 0.8, exact)["agreement"]


def test_the_noise_of_another_arithmetic_is_allowed_on_the_reference_samples() -> None:
    """Root mean squares 0.101 and 0.01 add up to 0.111, whose square is 0.0123."""
    assert on_reference(0.0123, 0.8, {"snr_db": 40})["worst_db"]
    assert not on_reference(0.0124, 0.8, {"snr_db": 40})["worst_db"]


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.0])
def test_answers_that_are_scaled_or_silent_are_never_forgiven(factor: float) -> None:
    """An error as large as the signal is beyond what any accepted build saw."""
    assert not on_reference((factor - 1.0) ** 2, 0.9, {"snr_db": 15})["worst_db"]
