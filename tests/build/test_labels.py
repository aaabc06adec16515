"""Labels of every form in whole builds, and originals that no build can be held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import ask, build

COUNT, CLASSES, SIZE = 96, 5, 8


def network(*tail: tuple[str, dict[str, Any]], outputs: int, pooled: bool) -> onnx.ModelProto:
    """A convolution of seeded weights over pictures, and some operators without weights."""
    generator = np.random.default_rng(7)
    weights = {
        "w1": generator.normal(size=(16, 3, 3, 3)) / 5,
        "w2": generator.normal(size=(outputs, 16, 1, 1)) / 4,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
    ]
    steps: list[tuple[str, dict[str, Any]]] = []
    if pooled:
        steps += [("GlobalAveragePool", {}), ("Flatten", {})]
    names = ["c", *(f"t{i}" for i in range(len(steps) + len(tail)))]
    for i, (operator, attributes) in enumerate([*steps, *tail]):
        nodes.append(helper.make_node(operator, [names[i]], [names[i + 1]], **attributes))
    nodes[-1].output[0] = "y"
    integer = bool(tail) and tail[-1][0] == "ArgMax"
    dtype = TensorProto.INT64 if integer else TensorProto.FLOAT
    shape: list[int | str] = ["batch", outputs] + ([] if pooled else [SIZE, SIZE])
    if integer:
        shape.pop(1)
    graph = helper.make_graph(
        nodes,
        "labelled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", dtype, shape)],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def pictures(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    level, contrast = generator.normal(size=(2, COUNT, 3, 1, 1)) * 2
    noise = generator.normal(size=(COUNT, 3, SIZE, SIZE))
    return (level + contrast * noise).astype(np.float32)


def arguments(folder: Path, model: onnx.ModelProto, labels: Any = None) -> list[str]:
    """A build on pictures whose labels are a function of the original's answers."""
    onnx.save(model, folder / "m.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.savez(folder / "calibration.npz", x=pictures(1))
    fed = pictures(2)
    arrays = {"x": fed}
    if labels is not None:
        arrays["labels"] = labels(session.run(None, {"x": fed})[0])
    np.savez(folder / "evaluation.npz", **arrays)
    return [
        "build", str(folder / "m.onnx"), "--target", "cpu-fbgemm", "--latency", "none",
        "--no-emulate", "--calibration", str(folder / "calibration.npz"),
        "--evaluation", str(folder / "evaluation.npz"),
    ]  # fmt: skip


CASES = {
    "one-hot": (
        network(outputs=CLASSES, pooled=True), lambda a: np.eye(CLASSES, dtype="f4")[a.argmax(1)],
        "scores", COUNT,
    ),
    "one logit": (network(outputs=1, pooled=True), lambda a: a[:, 0] > 0, "logit", COUNT),
    "one probability": (
        network(("Sigmoid", {}), outputs=1, pooled=True), lambda a: (a > 0.5).astype("f4"),
        "probability", COUNT,
    ),
    "a map": (
        network(outputs=CLASSES, pooled=False), lambda a: a.argmax(1), "scores",
        COUNT * SIZE * SIZE,
    ),
    "a map of integers": (
        network(("ArgMax", {"axis": 1, "keepdims": 0}), outputs=CLASSES, pooled=False),
        lambda a: a, "classes", COUNT * SIZE * SIZE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_labels_of_every_form_judge_the_bundle(tmp_path: Path, name: str) -> None:
    model, labels, kind, count = CASES[name]
    stated = tmp_path / "m.toml"
    stated.write_text("schema = 1\n[gates.quality]\nsnr_db = 10\nagreement = 0.8\n")
    loose = ["--manifest", str(stated), "--max-drop", "20"]
    report = build(arguments(tmp_path, model, labels), tmp_path / "x.edgepack", *loose).document
    (output,) = report["outputs"]
    assert output["kind"] == kind
    assert output.get("axis", -1) == (1 if name == "a map" else -1)
    assert report["samples"]["evaluation"]["labels"] is True
    metric = report["quality"]["metric"]
    assert (metric["original"], metric["samples"]) == (1.0, count)
    assert 0.8 <= metric["model"] <= 1.0
    gates = {gate["name"] for gate in report["quality"]["gates"]}
    assert {"agreement", "max_drop"} <= gates
    (export,) = (record for record in report["ledger"] if record["stage"] == "export")
    assert any("a manifest can set another kind" in note for note in export["notes"])


def test_labels_that_are_no_classes_are_reported_as_unused(tmp_path: Path) -> None:
    model = network(outputs=1, pooled=True)
    report = build(
        arguments(tmp_path, model, lambda answers: answers * 3), tmp_path / "x.edgepack"
    ).document
    assert report["samples"]["evaluation"]["labels"] is False
    reason = report["samples"]["evaluation"]["labels_unused"]
    assert "no output is known to decide" in reason
    assert any("unused" in warning and reason in warning for warning in report["warnings"])
    answer = ask(*arguments(tmp_path, model, lambda a: a * 3), "--metric", "top1",
                 "--output", str(tmp_path / "z.edgepack"))  # fmt: skip
    assert (answer.status, answer.code) == (2, "metric-needs-labels")
    assert reason in answer.document["error"]["why"]


def test_chance_is_an_error_that_a_manifest_may_allow(tmp_path: Path) -> None:
    """0 % of the original's 0 % is no proof; what proves then is the agreement."""
    model = network(outputs=CLASSES, pooled=True)
    asked = arguments(tmp_path, model, lambda a: (a.argmax(1) + 1) % CLASSES)
    output = tmp_path / "x.edgepack"
    answer = ask(*asked, "--output", str(output))
    assert (answer.status, answer.code) == (2, "original-chance")
    assert "output 'y'" in answer.document["error"]["what"]
    assert "export" not in answer.stderr
    stated = tmp_path / "m.toml"
    stated.write_text(
        "schema = 1\n[evaluation]\nallow_chance = true\n[gates.quality]\nagreement = 0.8\n"
    )
    report = build(asked, output, "--manifest", str(stated)).document
    assert report["quality"]["metric"] is None
    assert {gate["name"] for gate in report["quality"]["gates"]} >= {"snr_db", "agreement"}


def test_a_loss_that_is_allowed_lowers_the_agreement_by_as_much(tmp_path: Path) -> None:
    model = network(outputs=CLASSES, pooled=True)
    asked = arguments(tmp_path, model, lambda a: a.argmax(1))
    report = build(asked, tmp_path / "x.edgepack", "--max-drop", "20").document
    bounds = {gate["name"]: gate["bound"] for gate in report["quality"]["gates"]}
    assert bounds["agreement"] == pytest.approx(0.77)


def test_five_best_of_five_are_no_metric(tmp_path: Path) -> None:
    asked = arguments(tmp_path, network(outputs=CLASSES, pooled=True), lambda a: a.argmax(1))
    answer = ask(*asked, "--metric", "top5", "--output", str(tmp_path / "x.edgepack"))
    assert (answer.status, answer.code) == (2, "metric-trivial")


def refuse(asked: list[str], output: Path, code: str, said: str) -> None:
    answer = ask(*asked, "--output", str(output))
    assert (answer.status, answer.code) == (2, code)
    assert said in answer.document["error"]["what"]
    assert "export" not in answer.stderr
    assert not output.exists()


@pytest.mark.parametrize("operator", ["Sqrt", "Log"])
def test_answers_that_are_no_numbers_are_refused_before_the_export(
    tmp_path: Path, operator: str
) -> None:
    model = network((operator, {}), outputs=CLASSES, pooled=True)
    asked = arguments(tmp_path, model)
    refuse(asked, tmp_path / "x.edgepack", "original-not-finite", "output 'y' is NaN in evaluation")


@pytest.mark.parametrize("operator", ["Identity", "Sign", "ArgMax"])
def test_answers_that_no_sample_changes_are_refused_before_the_export(
    tmp_path: Path, operator: str
) -> None:
    tail = (operator, {"axis": 1, "keepdims": 0} if operator == "ArgMax" else {})
    model = network(tail, outputs=CLASSES, pooled=operator != "ArgMax")
    three = numpy_helper.from_array(np.array(3, np.float32), "three")
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    model.graph.initializer.extend([three, zero])
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "zero"], ["x0"]))
    model.graph.node.insert(1, helper.make_node("Add", ["x0", "three"], ["x1"]))
    model.graph.node[2].input[0] = "x1"
    asked = arguments(tmp_path, model)
    refuse(asked, tmp_path / "x.edgepack", "original-constant", "output 'y' is the same")
