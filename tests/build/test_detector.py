"""The detector of drawn shapes: lost in int8 by mAP alone, and repaired."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgepack.metrics.catalogue import load_metric
from support import ROOT
from support.build_cases import ask, build, entry
from support.bundle_cases import run_bundle

EXAMPLES = ROOT / "examples"
WEIGHTS = EXAMPLES / "weights" / "shapes-detector.safetensors"
COUNT = 100


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the manifest, on fewer pictures than it evaluates."""
    folder, shapes = tmp_path_factory.mktemp("shapes"), load("shapes_detector")
    pictures, boxes = shapes.draw(shapes.EVALUATION, COUNT)
    np.savez(folder / "evaluation.npz", image=pictures, labels=boxes)
    np.savez(folder / "calibration.npz", image=shapes.draw(shapes.CALIBRATION, 64)[0])
    return [
        "build", str(WEIGHTS), "--target", "cpu-fbgemm", "--latency", "none", "--no-emulate",
        "--manifest", str(ROOT / "manifests" / "shapes-detector.toml"),
        "--calibration", str(folder / "calibration.npz"),
        "--evaluation", str(folder / "evaluation.npz"),
    ]  # fmt: skip


def test_int8_that_loses_the_scores_is_refused_for_the_map_alone(
    arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "x.edgepack"
    plain = ["--chain", "quantize:repair=false", "--output", str(output)]
    answer = ask(*arguments, *plain)
    assert (answer.status, answer.code) == (1, "gate-missed"), answer.stderr
    assert "map relative to original" in answer.document["error"]["why"]
    assert "leave repair on" in answer.document["error"]["hint"]
    report = json.loads(entry(output.with_name("x.rejected.edgepack"), "report/report.json"))
    metric = report["quality"]["metric"]
    assert metric["original"] > 0.4
    assert metric["model"] < 0.9 * metric["original"]


def test_repair_brings_the_map_back_to_a_hundredth_of_the_original(
    arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "x.edgepack"
    answer = build(arguments, output)
    metric = answer.document["quality"]["metric"]
    assert metric["name"] == "map"
    assert metric["model"] >= 0.99 * metric["original"] > 0.4
    returned = [layer["name"] for layer in answer.stage("repair")["details"]["returned"]]
    assert len(returned) == 1
    # The device's answers, decoded by the same file, have the same precision.
    shapes = load("shapes_detector")
    pictures, boxes = shapes.draw(shapes.EVALUATION, COUNT)
    np.savez(tmp_path / "x.npz", image=pictures)
    run = run_bundle(output, "run", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert run.returncode == 0, run.stderr
    results = decode(tmp_path / "y.npz")
    task = load_metric("map", (), (), True)
    assert task.metric.compute(results, boxes) == pytest.approx(metric["model"], abs=1e-6)


def decode(path: Path) -> Any:
    with np.load(path) as answers:
        return load("shapes_postprocess").boxes({"predictions": answers["predictions"]})


def test_the_weights_are_those_of_the_program_s_network() -> None:
    from safetensors.torch import load_file

    assert WEIGHTS.stat().st_size < 300_000
    shapes = load("shapes_detector")
    shapes.model().load_state_dict(load_file(WEIGHTS))
    # Sets of different seeds share no picture, and one seed always draws the same.
    first, again, other = shapes.draw(2, 2), shapes.draw(2, 2), shapes.draw(3, 2)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
