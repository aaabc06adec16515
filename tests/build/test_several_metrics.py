"""Several metrics in one build: gates that name them, the report, and metrics without labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from edgepack.report import render_terminal
from support.build_cases import Home, ask, build, entry, render_text

ECE = """
import numpy as np


def spread(outputs, labels):
    return float(outputs[0].std())


spread.higher_is_better = False
"""


@pytest.fixture(scope="module")
def report_and_bundle(home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("several")
    (folder / "metrics.py").write_text(ECE)
    (folder / "m.toml").write_text(
        "schema = 1\n[evaluation]\n"
        'metrics = ["top1", "f1", "auroc", "top5", "metrics.py:spread"]\n'
        "[gates.metrics.f1]\nmax_drop = 1.0\nmin = 0.8\n[gates.metrics.spread]\nmax = 1000.0\n"
    )
    output = folder / "x.edgepack"
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    arguments += ["--manifest", str(folder / "m.toml"), "--gate", "auroc.ratio=0.9"]
    return build(arguments, output).document, output


def test_all_metrics_are_measured_and_the_gates_name_theirs(
    report_and_bundle: tuple[dict, Path],
) -> None:
    report, output = report_and_bundle
    quality = report["quality"]
    assert quality["metric"]["name"] == "top1"
    further = {metric["name"]: metric for metric in quality["further_metrics"]}
    assert list(further) == ["f1", "auroc", "top5", "spread"]
    assert further["top5"]["original"] == 1.0
    gates = [
        (g["name"], g["output"]) for g in quality["gates"] if g["output"] in (*further, "top1")
    ]
    assert gates == [
        ("metric_ratio", "top1"),
        ("max_drop", "f1"),
        ("metric_min", "f1"),
        ("metric_ratio", "auroc"),
        ("metric_max", "spread"),
    ]
    index = json.loads(entry(output, "bundle.json"))
    assert (index["metric"], index["quality"]["further_metrics"]) == (
        "top1",
        quality["further_metrics"],
    )


def test_every_metric_is_in_the_chain_and_in_the_summary(
    report_and_bundle: tuple[dict, Path],
) -> None:
    report, _ = report_and_bundle
    (row,) = (record for record in report["ledger"] if record["stage"] == "quantize")
    assert row["measured"]["quality"]["further_metrics"] == report["quality"]["further_metrics"]
    text = " ".join(render_text(render_terminal, report).split())
    for part in ("100.0 % top-1", "f1 100.0 % (original:", "auroc", "spread"):
        assert part in text, part
    # No name of a pass is cut at 80 columns, and every metric has its column.
    (heading,) = [line for line in text_lines(report) if line.startswith("  after")]
    assert heading.split() == ["after", "size", "top-1", "f1", "auroc", "top-5", "spread", "SNR"]
    assert any(line.startswith("  original ") for line in text_lines(report))


def text_lines(report: dict) -> list[str]:
    file = io.StringIO()
    render_terminal(report, Console(file=file, width=80))
    return file.getvalue().splitlines()


READER = """
import numpy as np


def texts(outputs):
    return ["".join(map(str, row)) for row in outputs["scores"].argmax(-1).tolist()]


def letters(outputs, labels):
    edits = 0
    for answer, label in zip(outputs, labels):
        row = list(range(len(label) + 1))
        for i, letter in enumerate(answer, 1):
            last, row[0] = row[0], i
            for j, expected in enumerate(label, 1):
                last, row[j] = row[j], min(last + (letter != expected), row[j] + 1, row[j - 1] + 1)
        edits += row[-1]
    return edits / sum(map(len, labels))


letters.higher_is_better = False


def pairs(outputs, originals):
    rows, columns = np.triu_indices(len(outputs[0]), 1)
    similarities = []
    for answers in (outputs[0], originals[0]):
        vectors = answers.reshape(len(answers), -1)
        similarities.append((vectors @ vectors.T)[rows, columns])
    return float(np.corrcoef(*similarities)[0, 1])


pairs.higher_is_better = pairs.against_original = True


def constant(outputs):
    return ["1"] * len(outputs["scores"])


def samples():
    with np.load(FILE) as arrays:
        for x, label in zip(arrays["x"], arrays["labels"]):
            yield {"x": x, "label": str(label)}
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader of five digits from 16 values each, with three to five of them as labels."""
    folder, generator = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    weights = generator.normal(size=(16, 10)).astype("f4")
    digits = generator.integers(0, 10, (2, 120, 5))
    noise = generator.normal(size=(2, 120, 5, 16)) * 0.3
    x = (np.moveaxis(weights[:, digits], 0, -1) + noise).astype("f4")
    np.savez(folder / "calibration.npz", x=x[0])
    labels = ["".join(map(str, row[: 3 + i % 3])) for i, row in enumerate(digits[1].tolist())]
    np.savez(folder / "evaluation.npz", x=x[1], labels=np.array(labels))
    file = str(folder / "evaluation.npz")
    (folder / "reader.py").write_text(READER.replace("FILE", repr(file)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"], "read")],
        "reader",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5, 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "reader.onnx")
    return folder


def read_command(reader: Path, *options: str) -> list[str]:
    return [
        "build", str(reader / "reader.onnx"), "--target", "cpu-fbgemm", "--latency", "none",
        "--no-emulate", "--calibration", str(reader / "calibration.npz"), *options,
    ]  # fmt: skip


def test_texts_are_judged_by_their_error_rate_and_by_a_function_of_ten_lines(
    reader: Path, tmp_path: Path
) -> None:
    code = str(reader / "reader.py")
    options = ["--evaluation", f"{code}:samples", "--postprocess", f"{code}:texts"]
    metrics = ["--metric", "cer", "--metric", f"{code}:letters", "--metric", "accuracy"]
    arguments = read_command(reader, *options, *metrics, "--gate", "letters.max=0.3")
    quality = build(arguments, tmp_path / "x.edgepack").document["quality"]
    cer, letters, accuracy = quality["metric"], *quality["further_metrics"]
    # Labels of three and four digits of five: (2 + 1) edits for 12 digits.
    assert cer["original"] == pytest.approx(0.25)
    assert [letters[key] for key in ("original", "model")] == [cer["original"], cer["model"]]
    assert accuracy["original"] == pytest.approx(1 / 3)
    ratio = next(gate for gate in quality["gates"] if gate["name"] == "metric_ratio")
    assert ratio["measured"] == pytest.approx((1 - cer["model"]) / (1 - cer["original"]))


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--metric", "cer"], "metric-needs-postprocess", "needs decoded outputs"),
        (
            ["--metric", "cer", "--postprocess", "CODE:constant"],
            "original-chance",
            "cer is no better",
        ),
        (["--metric", "map", "--postprocess", "CODE:texts"], "metric-shape", "are not boxes"),
        (["--metric", "f1", "--gate", "f1.max=1"], "gate-direction", "would pass any loss"),
    ],
)
def test_a_metric_that_cannot_judge_ends_the_build_at_the_original(
    reader: Path, tmp_path: Path, options: list[str], code: str, text: str
) -> None:
    options = [option.replace("CODE", str(reader / "reader.py")) for option in options]
    evaluation = ["--evaluation", str(reader / "evaluation.npz")]
    answer = ask(*read_command(reader, *evaluation, *options), "--output", str(tmp_path / "x"))
    assert (answer.status, answer.code) == (2, code), answer.stderr
    assert text in answer.document["error"]["what"]


def test_texts_without_a_metric_are_unused_with_a_word(reader: Path, tmp_path: Path) -> None:
    arguments = read_command(reader, "--evaluation", str(reader / "evaluation.npz"))
    report = build(arguments, tmp_path / "x.edgepack").document
    assert any("they are texts" in warning for warning in report["warnings"])


def test_without_labels_metrics_compare_with_the_original(reader: Path, tmp_path: Path) -> None:
    """The similarities of pairs of samples, and the cosine, need no labels."""
    metrics = ["--metric", f"{reader / 'reader.py'}:pairs", "--metric", "cosine"]
    arguments = read_command(reader, *metrics, "--gate", "cosine.min=0.99")
    quality = build(arguments, tmp_path / "x.edgepack").document["quality"]
    for metric in (quality["metric"], *quality["further_metrics"]):
        assert metric["original"] == pytest.approx(1.0)
        assert 0.99 < metric["model"] < metric["original"]
    gates = {(gate["name"], gate["output"]) for gate in quality["gates"]}
    assert {("metric_ratio", "pairs"), ("metric_min", "cosine")} < gates
