"""Whole builds with the modes of `quantize` that need no calibration samples."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import Home, ask, build, digest_of, entry

WORDS, WIDTH, HIDDEN, LENGTH, CLASSES = 600, 32, 48, 12, 4


def reader() -> onnx.ModelProto:
    """Tokens to scores: embeddings, an LSTM, its last state through two products."""
    random = np.random.default_rng(6)

    def drawn(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    constants = {
        "table": drawn(WORDS, WIDTH) * 6,
        "w": drawn(1, 4 * HIDDEN, WIDTH),
        "r": drawn(1, 4 * HIDDEN, HIDDEN),
        "mix": drawn(HIDDEN, HIDDEN).T.copy() * 4,
        "bias": drawn(1, HIDDEN)[0],
        "head": drawn(CLASSES, HIDDEN) * 4,
        "first": np.array([0]),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "tokens"], ["words"], "embed"),
        node("Transpose", ["words"], ["steps"], "turn", perm=[1, 0, 2]),
        node("LSTM", ["steps", "w", "r"], ["", "last"], "read", hidden_size=HIDDEN),
        node("Squeeze", ["last", "first"], ["state"], "state"),
        node("MatMul", ["state", "mix"], ["product"], "mix"),
        node("Add", ["product", "bias"], ["mixed"], "add"),
        node("Relu", ["mixed"], ["features"], "relu"),
        node("Gemm", ["features", "head"], ["scores"], "classify", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "reader",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", LENGTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """reader.onnx with labelled samples."""
    folder = tmp_path_factory.mktemp("texts")
    onnx.save(reader(), folder / "reader.onnx")
    session = onnxruntime.InferenceSession(str(folder / "reader.onnx"))
    random = np.random.default_rng(1)
    for role in ("calibration", "evaluation"):
        tokens = random.integers(0, WORDS, (400, LENGTH))
        scores = session.run(None, {"tokens": tokens})[0]
        # Those that it is sure of, as a trained network is of most: rounding turns no answer.
        best, second = np.sort(scores)[:, :-3:-1].T
        sure = np.argsort(second - best)[:100]
        labels = scores[sure].argmax(1)
        np.savez(folder / f"{role}.npz", tokens=tokens[sure], labels=labels)
    assert len(np.unique(labels)) == CLASSES
    return Home(folder)


def run_here(path: Path, *arguments: str) -> dict[str, Any]:
    """The loader that ships, on its own."""
    done = subprocess.run(
        [sys.executable, str(path), *arguments, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


CASES = {
    "quantize:mode=dynamic": ("int8", 4, {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 2}),
    "quantize:mode=weights": ("int8 weights", 4, {}),
    "quantize:mode=weights:bits=4:block=16": ("int4 weights", 4, {"MatMulNBits": 2}),
}


@pytest.mark.parametrize("chain", CASES)
def test_a_build_without_calibration_samples(texts: Home, tmp_path: Path, chain: str) -> None:
    precision, layers, kernels = CASES[chain]
    output = tmp_path / "reader.edgepack"
    arguments = texts.build(
        "reader.onnx", "--evaluation", texts / "evaluation.npz", "--chain", chain, calibration=""
    )
    answer = build(arguments, output)
    report = answer.document
    assert report["verdict"] == "PASS"
    assert report["target"]["precision"] == precision
    assert report["samples"]["calibration"] is None
    stage = answer.stage("quantize")
    assert stage["details"]["layers_quantized"] == layers
    assert stage["details"]["layers_float"] == []
    assert stage["details"]["kernels"] == kernels
    assert stage["notes"]
    assert stage["parity"]["scores"]["snr_db"] > 15
    # As many trained values as before, in less than a third of the bytes.
    assert stage["parameters"] == answer.stage("simplify")["parameters"]
    assert report["sizes"]["ratio"] < 0.33
    assert len(entry(output, "model/model.onnx")) == report["sizes"]["model_bytes"]
    # Not integers throughout: this device is held to an SNR, not to the bit.
    assert {gate["name"] for gate in report["fidelity"]["gates"]} == {"snr_db"}
    verdict = run_here(output, "verify")
    assert verdict["passed"]
    with zipfile.ZipFile(output) as archive:
        html = archive.read("report/report.html").decode()
    account = stage["notes"][0].partition(";")[0].partition("layers ")[2]
    assert account
    assert account in html.replace("\N{NO-BREAK SPACE}", " ")


def test_the_default_chain_gives_each_layer_its_form(texts: Home, tmp_path: Path) -> None:
    output = tmp_path / "reader.edgepack"
    answer = build(texts.build("reader.onnx", "--evaluation", texts / "evaluation.npz"), output)
    details = answer.stage("quantize")["details"]
    assert details["layers_quantized"] == 2
    assert [layer["name"] for layer in details["layers_dynamic"]] == ["read"]
    assert not details["integer_only"]
    report = answer.document
    assert {gate["name"] for gate in report["fidelity"]["gates"]} == {"snr_db"}
    sizes = report["sizes"]
    assert sizes["basis"] == "file"
    assert sizes["original_bytes"] == Path(texts / "reader.onnx").stat().st_size
    assert sizes["ratio"] == pytest.approx(sizes["model_bytes"] / sizes["original_bytes"])
    assert report["cautions"] == []
    assert run_here(output, "verify")["passed"]
    with zipfile.ZipFile(output) as archive:
        html = archive.read("report/report.html").decode()
    account = "2 in static int8, 1 in dynamic int8, 1 with int8 weights and float arithmetic"
    assert f"Layers: {account}." in html


def test_a_layer_of_run_time_goes_back_to_float_by_name(texts: Home, tmp_path: Path) -> None:
    answer = build(
        texts.build("reader.onnx", "--evaluation", texts / "evaluation.npz",
                    "--chain", "quantize:recurrent=float"),
        tmp_path / "reader.edgepack",
    )  # fmt: skip
    details = answer.stage("quantize")["details"]
    assert details["layers_dynamic"] == []
    assert [layer["operator"] for layer in details["layers_float"]] == ["LSTM"]


def test_the_same_build_twice_and_from_a_manifest(texts: Home, tmp_path: Path) -> None:
    (texts.folder / "weights.toml").write_text(
        'schema = 1\nchain = "quantize"\n[quantize]\nmode = "weights"\nbits = 4\n'
        'block = 16\nexclude = ["classify"]\n[evaluation]\nsamples = "evaluation.npz"\n'
    )
    outputs = [tmp_path / f"{name}.edgepack" for name in "ab"]
    for output in outputs:
        arguments = texts.build("reader.onnx", "--manifest", texts / "weights.toml", calibration="")
        answer = build(arguments, output)
    assert digest_of(outputs[0]) == digest_of(outputs[1])
    details = answer.stage("quantize")["details"]
    assert (details["bits"], details["block"], details["layers_in_blocks"]) == (4, 16, 1)
    assert details["layers_float"] == [
        {"name": "classify", "operator": "Gemm", "reason": "excluded by name"}
    ]


def test_gptq_asks_for_calibration_samples(texts: Home, tmp_path: Path) -> None:
    output = tmp_path / "reader.edgepack"
    options = ("--evaluation", texts / "evaluation.npz", "--chain")
    chain = "quantize:mode=dynamic:rounding=gptq"
    refused = ask(
        *texts.build("reader.onnx", *options, chain, "--output", str(output), calibration="")
    )
    assert (refused.status, refused.code) == (2, "samples-missing")
    assert not output.exists()
    answer = build(texts.build("reader.onnx", *options, chain), output)
    assert answer.stage("quantize")["details"]["calibration_samples"] == 100


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_tensorrt_takes_neither(texts: Home, tmp_path: Path, mode: str) -> None:
    arguments = texts.build("reader.onnx", "--chain", f"quantize:mode={mode}")
    arguments[arguments.index("cpu-fbgemm")] = "tensorrt-int8"
    refused = ask(*arguments, "--output", str(tmp_path / "reader.edgepack"))
    assert (refused.status, refused.code) == (2, "quantize-option")
    assert f"does not support the mode '{mode}'" in refused.document["error"]["what"]
