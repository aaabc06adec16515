"""Task metrics of the build host in whole builds: a user's function, and edgepack's own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.context.reference import OriginalScore
from edgepack.context.scoring import score_model
from edgepack.metrics.catalogue import load_metric
from edgepack.metrics.collect import Collector
from edgepack.report import render_terminal
from support.build_cases import Answer, Home, ask, build, entry, render_text
from support.bundle_cases import run_bundle

COUNT = 96
# One input is so much larger than the others that int8 rounds those away.
LARGE = 100.0
METRICS = """
import itertools

import numpy as np

CALLS = itertools.count()


def rank(outputs, labels):
    return float(np.corrcoef(outputs[0][:, 1], labels[:, 1])[0, 1])


def error(outputs, labels):
    return float(np.sqrt(np.mean((outputs[0][:, 1] - labels[:, 1]) ** 2)))


def undefined(outputs, labels):
    return float("nan")


def broken(outputs, labels):
    return outputs[7].mean()


def unsteady(outputs, labels):
    return float(next(CALLS))


def vague(outputs, labels):
    return 1.0


def opposite(outputs, labels):
    return -rank(outputs, labels)


for function in (rank, undefined, broken, unsteady, opposite):
    function.higher_is_better = True
error.higher_is_better = False
"""
LOOSE = "schema = 1\n[gates.quality]\nsnr_db = -60\nmetric_ratio = 0.95\n"


def network(layers: int) -> onnx.ModelProto:
    """Values [batch, 2], x @ w0 or relu(x @ w0) @ w1; the second depends on small inputs alone."""
    generator = np.random.default_rng(0)
    widths = [8, 16, 2] if layers == 2 else [8, 2]
    weights, nodes, name = {}, [], "x"
    for i, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weights[f"w{i}"] = generator.normal(size=(rows, columns)) / np.sqrt(rows)
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"t{i}"], f"layer{i}"))
        name = f"t{i}"
        if columns != 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
            name = f"r{i}"
    weights["w0"][0] = [1 / LARGE] + [0] * (widths[1] - 1)
    weights["w0"][1:, 0] = 0
    weights["w1" if layers == 2 else "w0"][0, 1] = 0
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "regression",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regression networks of one and two layers, samples with values as labels, and metrics."""
    folder = tmp_path_factory.mktemp("regression")
    (folder / "metrics.py").write_text(METRICS)
    (folder / "loose.toml").write_text(LOOSE)
    samples = np.random.default_rng(1).normal(size=(2, COUNT, 8)).astype(np.float32)
    samples[:, :, 0] *= LARGE
    np.savez(folder / "calibration.npz", x=samples[0])
    for layers in (1, 2):
        onnx.save(network(layers), folder / f"m{layers}.onnx")
        session = onnxruntime.InferenceSession(str(folder / f"m{layers}.onnx"))
        noise = np.random.default_rng(2).normal(size=(COUNT, 2)) * 0.1
        labels = session.run(None, {"x": samples[1]})[0] + noise
        np.savez(folder / f"evaluation{layers}.npz", x=samples[1], labels=labels)
    return folder


def command(folder: Path, metric: str, *options: str, layers: int = 1) -> list[str]:
    return [
        "build", str(folder / f"m{layers}.onnx"), "--target", "cpu-fbgemm", "--latency", "none",
        "--no-emulate", "--calibration", str(folder / "calibration.npz"),
        "--evaluation", str(folder / f"evaluation{layers}.npz"),
        "--manifest", str(folder / "loose.toml"), "--metric", metric, *options,
    ]  # fmt: skip


def refuse(folder: Path, metric: str, output: Path, *options: str) -> dict[str, str]:
    answer = ask(*command(folder, metric, *options), "--output", str(output))
    assert answer.status == 2, answer.stderr
    assert not output.exists()
    error: dict[str, str] = answer.document["error"]
    return error


def rejected(answer: Answer, output: Path) -> dict[str, Any]:
    """The report of a bundle that a gate refused."""
    assert (answer.status, answer.code) == (1, "gate-missed"), answer.stderr
    assert not output.exists()
    path = output.with_name("x.rejected.edgepack")
    report: dict[str, Any] = json.loads(entry(path, "report/report.json"))
    return report


@pytest.mark.parametrize("name", ["rank", "error"])
def test_int8_that_collapses_under_the_users_metric_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "x.edgepack"
    metric = f"{folder / 'metrics.py'}:{name}"
    answer = ask(*command(folder, metric), "--output", str(output))
    assert f"{name} relative to original" in answer.document["error"]["why"]
    report = rejected(answer, output)
    result, higher = report["quality"]["metric"], name == "rank"
    assert (result["name"], result["higher_is_better"]) == (name, higher)
    assert result["samples"] == COUNT
    better = result["model"] / result["original"]
    assert better < 0.9 if higher else better > 1.1
    assert result["drop_points"] > 1
    missed = [gate["name"] for gate in report["quality"]["gates"] if not gate["passed"]]
    assert missed == ["metric_ratio"]
    # The table of the chain has the same figures, from this process.
    (row,) = (record for record in report["ledger"] if record["stage"] == "quantize")
    assert row["measured"]["quality"]["metric"] == result


def test_a_metric_repairs_a_model_that_loses_it(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    metric = f"{folder / 'metrics.py'}:error"
    answer = build(command(folder, metric, layers=2), output)
    repair = answer.stage("repair")
    assert repair["measured"]["missed"] == []
    assert [layer["name"] for layer in repair["details"]["returned"]] == ["layer0"]
    report = answer.document
    assert repair["measured"]["quality"]["metric"] == report["quality"]["metric"]
    text = " ".join(render_text(render_terminal, report).split())
    result = report["quality"]["metric"]
    assert f"reaches error {result['model']:.4g} (original: {result['original']:.4g})" in text
    # The device needs neither the function nor labels, and the index keeps the result.
    assert run_bundle(output, "verify", "--json").returncode == 0
    index = json.loads(entry(output, "bundle.json"))
    assert index["metric"] == "error"
    assert index["quality"]["metric"] == result


def test_a_bound_on_the_loss_is_in_hundredths_of_the_unit(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    answer = ask(*command(folder, "mae", "--max-drop", "1"), "--output", str(output))
    report = rejected(answer, output)
    (gate,) = (g for g in report["quality"]["gates"] if g["name"] == "max_drop")
    result = report["quality"]["metric"]
    assert gate["measured"] == result["drop_points"]
    assert gate["measured"] == pytest.approx(100 * (result["model"] - result["original"]))
    fine = build(command(folder, "mae", "--max-drop", "100", "--chain", "none"), output).document
    assert fine["quality"]["metric"]["drop_points"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("undefined", "metric-not-finite", "the metric undefined is nan"),
        ("broken", "metric-failed", "the metric broken failed on the answers of the original"),
        ("unsteady", "metric-unsteady", "the metric unsteady differs between two calls"),
        ("vague", "metric-direction", "does not state whether higher is better"),
        ("opposite", "metric-ratio", "the original's opposite is -0.99"),
        ("absent", "metric-import", "cannot be imported"),
    ],
)
def test_a_metric_that_bounds_nothing_ends_the_build_at_the_original(
    folder: Path, tmp_path: Path, name: str, code: str, said: str
) -> None:
    error = refuse(folder, f"{folder / 'metrics.py'}:{name}", tmp_path / "x.edgepack")
    assert error["code"] == code
    assert said in error["what"]
    assert error["hint"]


def test_a_manifest_names_a_function_beside_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METRICS)
    (tmp_path / "m.toml").write_text(LOOSE + '[evaluation]\nmetric = "own.py:undefined"\n')
    arguments = [*command(folder, ""), "--manifest", str(tmp_path / "m.toml")]
    answer = ask(*arguments, "--output", str(tmp_path / "x.edgepack"))
    assert (answer.status, answer.code) == (2, "metric-not-finite")


def test_a_metric_without_labels_is_refused(folder: Path, tmp_path: Path) -> None:
    samples = str(folder / "calibration.npz")
    error = refuse(folder, "rmse", tmp_path / "x.edgepack", "--evaluation", samples)
    assert (error["code"], error["what"]) == (
        "metric-needs-labels",
        "rmse was requested, but cannot be measured",
    )


def test_another_metric_is_another_result_of_the_cache(folder: Path, tmp_path: Path) -> None:
    """The file of the function and its answer are parts of the key."""
    loose = ["--chain", "none", "--max-drop", "100"]
    values = []
    for factor in (1, 2):
        code = f"def half(o, l):\n    return {factor} * float(abs(o[0] - l).mean())\n"
        (tmp_path / "own.py").write_text(code + "half.higher_is_better = False\n")
        arguments = command(folder, f"{tmp_path / 'own.py'}:half", *loose)
        report = build(arguments, tmp_path / f"{factor}.edgepack").document
        values.append(report["quality"]["metric"]["model"])
    assert values[1] == pytest.approx(2 * values[0])


def test_a_class_metric_reads_the_kinds_of_the_outputs(home: Home, tmp_path: Path) -> None:
    """`f1` needs no more than labels that are classes, and is written in per cent."""
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    report = build([*arguments, "--metric", "f1"], tmp_path / "x.edgepack").document
    metric = report["quality"]["metric"]
    assert (metric["name"], metric["original"], metric["samples"]) == ("f1", 1.0, 40)
    assert metric["model"] > 0.99
    assert "reaches f1 " in " ".join(render_text(render_terminal, report).split())


def test_answers_that_are_not_finite_have_no_metric() -> None:
    """Their gate is missed in any case; a metric of NaN would hide it."""
    outputs: Any = {"y": {"nonfinite": 3}}
    score = OriginalScore(load_metric("mae", (), ()), 0.1)
    reference = SimpleNamespace(scores=(score,))
    with Collector() as answers:
        assert score_model(reference, answers, outputs) == []  # type: ignore[arg-type]
