"""Outputs of every kind are held to what matters in them, through whole builds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.build_cases import ask, build
from support.bundle_cases import run_bundle
from support.output_nets import detector, label_map, offset_head
from support.quantize_nets import images, run

UNREPAIRED = ("--chain", "quantize:repair=false")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calibration.npz", x=images(100, seed=1))
    np.savez(tmp_path / "evaluation.npz", x=images(64, seed=2))
    return tmp_path


def arguments(folder: Path, model: onnx.ModelProto, *options: str) -> list[str]:
    onnx.save(model, folder / "net.onnx")
    return [
        "build", str(folder / "net.onnx"), "--target", "cpu-fbgemm",
        "--calibration", str(folder / "calibration.npz"),
        "--evaluation", str(folder / "evaluation.npz"),
        "--latency", "none", "--no-emulate", *options,
    ]  # fmt: skip


def test_scores_that_collapse_beside_boxes_are_refused_by_name(folder: Path) -> None:
    refused = ask(*arguments(folder, detector(), *UNREPAIRED), "--output", str(folder / "x"))
    assert (refused.status, refused.code) == (1, "gate-missed")
    assert "[:, 4:24]" in refused.document["error"]["why"]


def test_scores_that_collapse_beside_boxes_are_repaired(folder: Path) -> None:
    answer = build(arguments(folder, detector()), folder / "net.edgepack")
    (output,) = answer.document["quality"]["outputs"].values()
    assert [part["part"] for part in output["parts"]] == ["[:, 0:4]", "[:, 4:24]"]
    assert min(part["snr_db"] for part in output["parts"]) >= 10
    returned = answer.stage("repair")["details"]["returned"]
    assert returned


def test_a_regression_that_answers_its_mean_is_refused(folder: Path) -> None:
    """300 +- a little: about zero its SNR is above 40 dB, and it explains nothing."""
    model = offset_head()
    values = run(model, {"x": images(64, seed=2)})[0]
    assert 20 * np.log10(300 / values.std()) > 40
    refused = ask(*arguments(folder, model, *UNREPAIRED), "--output", str(folder / "x"))
    assert (refused.status, refused.code) == (1, "gate-missed")
    assert "SNR" in refused.document["error"]["why"]


def test_a_label_map_is_held_to_equal_pixels(folder: Path) -> None:
    answer = build(arguments(folder, label_map()), folder / "map.edgepack")
    ((name, output),) = answer.document["quality"]["outputs"].items()
    assert (output["compared"], output["snr_db"]) == ("equality", None)
    assert output["decisions"] == 64 * 16 * 16
    gate = next(g for g in answer.document["quality"]["gates"] if g["output"] == name)
    assert (gate["name"], gate["measured"]) == ("agreement", output["top1_agreement"])
    done = run_bundle(folder / "map.edgepack", "verify", "--json")
    assert json.loads(done.stdout)["passed"]


def test_a_label_map_of_other_classes_is_refused(folder: Path) -> None:
    """Eight bits with ranges from pictures that are far too dark."""
    np.savez(folder / "calibration.npz", x=images(100, seed=1) / 50)
    model = label_map()
    refused = ask(*arguments(folder, model, *UNREPAIRED), "--output", str(folder / "x"))
    assert (refused.status, refused.code) == (1, "gate-missed")
    assert "agreement" in refused.document["error"]["why"].lower()
