"""Which gates a build is held to: the profile's, the manifest's, the flags'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.context.gates import check_direction, describe_missed, judge_metrics
from edgepack.errors import SpecError
from edgepack.metrics.catalogue import BUILT_IN
from edgepack.metrics.protocol import TaskMetric
from edgepack.request import Flags, Request, resolve
from edgepack.runtime.parity.gates import describe_gate
from edgepack.spec import target as targets
from edgepack.spec.manifest import Manifest


def resolved(quality: dict[str, float], **flags: Any) -> Request:
    manifest = Manifest(name="x", quality=quality)
    return resolve(Path("x.onnx"), targets.load("cpu-fbgemm"), manifest, Flags(**flags))


PROFILE = {"snr_db": 10, "agreement": 0.97}


@pytest.mark.parametrize(
    ("quality", "flags", "expected", "stated"),
    [
        ({}, {}, {"metric_ratio": 0.99}, set()),
        # One bound on the metric takes the place of MLPerf's, wherever it is stated.
        ({"max_drop": 0.3}, {}, {"max_drop": 0.3}, {"max_drop"}),
        ({}, {"max_drop": 0.3}, {"max_drop": 0.3}, {"max_drop"}),
        ({"max_drop": 0.3}, {"max_drop": 2.0}, {"max_drop": 2.0}, {"max_drop"}),
        ({"metric_ratio": 0.9}, {"max_drop": 2.0}, {"max_drop": 2.0}, {"max_drop"}),
        # Who states both wants both.
        (
            {"max_drop": 0.3, "metric_ratio": 0.98},
            {},
            {"max_drop": 0.3, "metric_ratio": 0.98},
            {"max_drop", "metric_ratio"},
        ),
        # What is asked for beside it holds beside it.
        (
            {"max_drop": 0.3},
            {"strict": True},
            {"max_drop": 0.3, "metric_ratio": 0.999, "snr_db": 20, "agreement": 0.99},
            {"max_drop"},
        ),
    ],
)
def test_gates(
    quality: dict[str, float], flags: dict[str, Any], expected: dict[str, float], stated: set[str]
) -> None:
    found = resolved(quality, **flags)
    assert found.quality == {**PROFILE, **expected}
    assert found.explicit_gates == stated


MANIFEST = Manifest(
    name="x",
    metrics=("f1", "mae"),
    metric_gates={"f1": {"ratio": 0.98, "min": 0.7}, "mae": {"max": 2.0}},
)


def resolve_gates(manifest: Manifest, *gates: str, **flags: Any) -> Request:
    target = targets.load("cpu-fbgemm")
    return resolve(Path("x.onnx"), target, manifest, Flags(gates=gates, **flags))


def test_gates_name_their_metric() -> None:
    """The ratio and the drop of the primary metric are those of quality; all others are named."""
    found = resolve_gates(MANIFEST)
    assert found.metric == "f1"
    assert found.quality == {**PROFILE, "metric_ratio": 0.98}
    assert found.metric_gates == {"f1": {"min": 0.7}, "mae": {"max": 2.0}}
    # The command line overrides bound by bound.
    found = resolve_gates(MANIFEST, "f1.max_drop=1", "mae.max=3", "mae.max_drop=5", "snr_db=25")
    assert found.quality == {"snr_db": 25, "agreement": 0.97, "max_drop": 1.0}
    assert found.explicit_gates == {"max_drop", "snr_db"}
    assert found.metric_gates == {"f1": {"min": 0.7}, "mae": {"max": 3.0, "max_drop": 5.0}}


def test_a_gate_on_top1_asks_for_it() -> None:
    found = resolve_gates(Manifest(name="x"), "top1.min=0.9")
    assert (found.metrics, found.metric_gates) == (("top1",), {"top1": {"min": 0.9}})
    assert resolve_gates(Manifest(name="x")).metrics == ()


@pytest.mark.parametrize(
    ("gates", "flags", "code"),
    [
        (["f2.max_drop=1"], {}, "gate-unmeasured"),
        (["f1.median=1"], {}, "gate-invalid"),
        (["f1.min=high"], {}, "gate-invalid"),
        (["f1.min"], {}, "gate-invalid"),
        (["speed=1"], {}, "gate-invalid"),
        ([".min=1"], {}, "gate-invalid"),
        (["f1.min=1", "f1.min=2"], {}, "gate-repeated"),
        (["f1.max_drop=1"], {"max_drop": 2.0}, "gate-repeated"),
    ],
)
def test_gates_that_mean_nothing_are_refused(
    gates: list[str], flags: dict[str, Any], code: str
) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_gates(MANIFEST, *gates, **flags)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("gate", "advice"),
    [
        ("f2.max_drop=1", "--metric metrics.py:f2"),
        ("f1.max_drp=1", "did you mean max_drop?"),
        ("snr=25", "did you mean snr_db?"),
        ("f1=0.8", "f1.min"),
    ],
)
def test_a_wrong_gate_is_told_the_right_spelling(gate: str, advice: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_gates(MANIFEST, gate)
    assert advice in f"{caught.value.why} {caught.value.hint}"


def test_a_bound_on_the_better_side_is_refused() -> None:
    for name, wrong, right in (("f1", "max", "min"), ("mae", "min", "max")):
        task = TaskMetric(BUILT_IN[name], name)
        check_direction({right: 1.0, "max_drop": 1.0}, task)
        with pytest.raises(SpecError, match="would pass any loss") as caught:
            check_direction({wrong: 1.0}, task)
        assert caught.value.hint == f"--gate {name}.{right}=1"


def test_a_bound_that_the_original_misses_is_told_at_once() -> None:
    f1, mae = TaskMetric(BUILT_IN["f1"], "f1"), TaskMetric(BUILT_IN["mae"], "mae")
    assert (
        describe_missed({"min": 0.8}, f1, 0.71)
        == "the original's f1 is 0.71; its gate requires 0.8"
    )
    assert describe_missed({"max": 2}, mae, 2.5) == "the original's mae is 2.5; its gate allows 2"
    assert describe_missed({"min": 0.8, "max_drop": 1}, f1, 0.8) == ""


def test_gates_on_values_are_judged_and_described() -> None:
    metric: Any = {"name": "f1", "original": 0.9, "model": 0.85, "higher_is_better": True}
    metric.update(drop_points=5.0, samples=100)
    bounds = {"f1": {"ratio": 0.99, "max_drop": 6, "min": 0.8, "max": 0.8}, "mae": {"max": 1}}
    lines = [describe_gate(gate) for gate in judge_metrics(bounds, [metric])]
    assert lines == [
        "FAIL f1: 94.44 % of the original (at least 99 %)",
        "ok   f1: drop of 5.00 points (at most 6)",
        "ok   f1: 0.85 (at least 0.8)",
        "FAIL f1: 0.85 (at most 0.8)",
    ]


def test_a_flag_overrides_where_the_manifest_finds_the_weights() -> None:
    target, model = targets.load("cpu-fbgemm"), Path("x.pt")
    manifest = Manifest(name="x", weights="ema", strip_prefix="model.")
    request = resolve(model, target, manifest)
    assert (request.weights, request.strip_prefix) == ("ema", "model.")
    request = resolve(model, target, manifest, Flags(weights="model", strip_prefix="net."))
    assert (request.weights, request.strip_prefix) == ("model", "net.")
