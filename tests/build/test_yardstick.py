"""Outputs of every kind are held to what matters in them, through whole builds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.build_cases import ask, build
from support.bundle_cases import run_bundle
from support.quantize_nets import Net, images, run

UNREPAIRED = ("--chain", "quantize:repair=false")


def detector() -> onnx.ModelProto:
    """Boxes in pixels and class scores in one output, as most detectors are exported.

    One channel before the scores is loud and means little to them: eight bits for all of its
    tensor leave nothing of the others.
    """
    net = Net(3)
    x = net.op("Relu", net.conv("x", 3, 16))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    boxes = net.op("Mul", net.conv(x, 16, 4, 1), net.constant(np.float32(80)))
    x = net.conv(x, 16, 32)
    loud = net.constants[net.nodes[-1].input[2]]
    loud[3] = 900.0
    x = net.op("Relu", x)
    scores = net.conv(x, 32, 20, 1)
    weight = net.constants[net.nodes[-1].input[1]]
    weight[:, 3] = 1e-4
    scores = net.op("Sigmoid", scores)
    both = net.op("Concat", boxes, scores, axis=1)
    flat = net.op("Reshape", both, net.constant(np.array([0, 24, 64])))
    return net.model({"x": ["batch", 3, 16, 16]}, [flat])


def offset_head() -> onnx.ModelProto:
    """A regression whose answers are 300 and a little; the little is of a quiet channel."""
    net = Net(4)
    x = net.conv("x", 3, 16)
    bias = net.constants[net.nodes[-1].input[2]]
    bias[3] = 600.0
    x = net.op("Relu", x)
    x = net.op("Relu", net.conv(x, 16, 16, 1))
    weight = net.constants[net.nodes[-2].input[1]]
    weight[:, 3] = 1e-4
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.gemm(x, 16, 1)
    net.constants[net.nodes[-1].input[2]][:] = 300.0
    return net.model({"x": ["batch", 3, 16, 16]}, [x])


def label_map() -> onnx.ModelProto:
    """The class of every pixel, as an integer."""
    net = Net(5)
    x = net.op("Relu", net.conv("x", 3, 16))
    x = net.op("ArgMax", net.conv(x, 16, 6), axis=1, keepdims=0)
    return net.model({"x": ["batch", 3, 16, 16]}, [x])


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
