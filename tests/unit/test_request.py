"""Which gates a build is held to: the profile's, the manifest's, the flags'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.request import Flags, Request, resolve
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


def test_a_flag_overrides_where_the_manifest_finds_the_weights() -> None:
    target, model = targets.load("cpu-fbgemm"), Path("x.pt")
    manifest = Manifest(name="x", weights="ema", strip_prefix="model.")
    request = resolve(model, target, manifest)
    assert (request.weights, request.strip_prefix) == ("ema", "model.")
    request = resolve(model, target, manifest, Flags(weights="model", strip_prefix="net."))
    assert (request.weights, request.strip_prefix) == ("model", "net.")
