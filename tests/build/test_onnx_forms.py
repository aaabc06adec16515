"""ONNX files of other precisions, quantized already or exported in training mode, built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import load
from support.build_cases import Home, ask, build, tiny_onnx, tiny_weights


def samples(home: Home) -> list[str]:
    return [
        *("--target", "cpu-fbgemm", "--calibration", str(home / "calibration.npz")),
        *("--evaluation", str(home / "evaluation.npz"), "--latency", "none", "--no-emulate"),
    ]


def test_float16_weights_are_quantized_and_the_interface_keeps_its_type(
    home: Home, tmp_path: Path
) -> None:
    model = tiny_onnx({k: v.astype(np.float16) for k, v in tiny_weights().items()})
    inputs = {value.name for value in model.graph.input}
    first = model.graph.node[0]
    first.input[:] = ["half" if name in inputs else name for name in first.input]
    cast = helper.make_node("Cast", sorted(inputs), ["half"], to=TensorProto.FLOAT16)
    model.graph.node.insert(0, cast)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "m.onnx")
    arguments = ["build", str(tmp_path / "m.onnx"), *samples(home)]
    answer = build(arguments, tmp_path / "m.edgepack")
    assert "float16 weights cast to float32" in answer.stage("export")["notes"]
    details = answer.stage("quantize")["details"]
    assert details["layers_quantized"] > 1
    assert details["layers_float"] == []
    assert {output["dtype"] for output in answer.document["outputs"]} == {"float16"}


@pytest.fixture(scope="module")
def quantized(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network quantized by onnxruntime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str, images: np.ndarray) -> None:
            self.feeds = iter([{name: image[None]} for image in images])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    folder = tmp_path_factory.mktemp("quantized")
    model = tiny_onnx(tiny_weights())
    onnx.save(model, folder / "float.onnx")
    name = model.graph.input[0].name
    images = np.load(home / "calibration.npz")[name][:8]
    quantize_static(folder / "float.onnx", folder / "m.onnx", Reader(name, images))
    return folder / "m.onnx"


def test_a_quantized_file_is_named_as_such_by_the_pass(
    quantized: Path, home: Home, tmp_path: Path
) -> None:
    output = tmp_path / "m.edgepack"
    answer = ask("build", str(quantized), *samples(home), "--output", str(output))
    assert answer.status == 2
    assert answer.code == "quantize-already"
    assert "QuantizeLinear" in answer.document["error"]["why"]
    assert "--chain none" in answer.document["error"]["hint"]


def test_a_quantized_file_is_bundled_and_verified_without_the_pass(
    quantized: Path, home: Home, tmp_path: Path
) -> None:
    arguments = ["build", str(quantized), *samples(home), "--chain", "none"]
    answer = build(arguments, tmp_path / "m.edgepack")
    assert answer.document["verdict"] == "PASS"
    assert any("already quantized" in note for note in answer.stage("source")["notes"])


def test_statistics_of_the_batch_are_warned_of(home: Home, tmp_path: Path) -> None:
    model = tiny_onnx(tiny_weights())
    first = model.graph.node[0]
    behind, first.output[0] = first.output[0], "before_norm"
    constants = ("scale", "shift", "mean", "variance")
    norm = helper.make_node(
        "BatchNormalization",
        [first.output[0], *constants],
        [behind, "running_mean", "running_variance"],
        training_mode=1,
    )
    model.graph.node.insert(1, norm)
    for value, name in enumerate(constants, start=1):
        numbers = np.full(8, value, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(numbers, name))
    onnx.save(model, tmp_path / "m.onnx")
    arguments = ["build", str(tmp_path / "m.onnx"), *samples(home), "--chain", "none"]
    answer = ask(*arguments, "--output", str(tmp_path / "m.edgepack"))
    assert "answers depend on the other samples of a batch" in answer.stderr


NETWORK = """
import torch
from torch import nn


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x, past):
        query, key, value = self.parts(x).chunk(3, -1)
        key, value = torch.cat([past, key], 1), torch.cat([past, value], 1)
        return self.out((query @ key.transpose(1, 2)).softmax(-1) @ value), key
"""


def test_an_empty_cache_is_an_input_like_any_other(tmp_path: Path) -> None:
    import torch

    (tmp_path / "cached.py").write_text(NETWORK)
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    torch.manual_seed(0)
    torch.save(names["Cached"]().state_dict(), tmp_path / "m.pt")
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 6, 8)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, past=np.zeros((64, 0, 8), np.float32))
    output = tmp_path / "m.edgepack"
    answer = build(
        ["build", str(tmp_path / "m.pt"), "--arch", f"{tmp_path / 'cached.py'}:Cached",
         "--input", "x:float32:batch,6,8", "--input", "past:float32:batch,past,8",
         "--target", "cpu-fbgemm", "--calibration", str(tmp_path / "s.npz"),
         "--latency", "none", "--no-emulate"],
        output,
    )  # fmt: skip
    assert "past is empty in every calibration sample" in answer.stderr
    assert "Axis past was run at 1 and 2 beside 0" in " ".join(answer.stage("export")["notes"])
    key = load(output)(x=x[:2], past=np.zeros((2, 0, 8), np.float32))["output_1"]
    assert key.shape == (2, 6, 8)
