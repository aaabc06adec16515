"""What a bundle's size is compared with: the file that the user gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.report.findings import describe_size, format_title
from support.build_cases import Home, build

LENGTH, WIDTH = 256, 64


def positions() -> onnx.ModelProto:
    """A small table that is tiled to eight times the bytes of everything else when folded."""
    random = np.random.default_rng(4)
    arrays = {
        "table": random.standard_normal((1, 1, WIDTH)).astype(np.float32),
        "times": np.array([1, LENGTH, 1]),
        "mix": (random.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Tile", ["table", "times"], ["tiled"], "tile"),
        helper.make_node("Add", ["x", "tiled"], ["placed"], "add"),
        helper.make_node("MatMul", ["placed", "mix"], ["y"], "mix"),
    ]
    shape = ["batch", LENGTH, WIDTH]
    graph = helper.make_graph(
        nodes,
        "positions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_graph_that_folding_would_grow_is_compared_with_the_file(tmp_path: Path) -> None:
    onnx.save(positions(), tmp_path / "positions.onnx")
    samples = np.random.default_rng(5).standard_normal((40, LENGTH, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=samples)
    size = (tmp_path / "positions.onnx").stat().st_size
    answer = build(Home(tmp_path).build("positions.onnx"), tmp_path / "positions.edgepack")
    sizes = answer.document["sizes"]
    assert (sizes["basis"], sizes["original_bytes"], sizes["file_bytes"]) == ("file", size, size)
    assert sizes["ratio"] == sizes["model_bytes"] / size < 0.5
    assert answer.stage("simplify")["bytes"] < 1.2 * size
    assert any("stay unfolded" in note for note in answer.stage("simplify")["notes"])


def test_a_bundle_larger_than_the_file_is_no_plain_success(tmp_path: Path) -> None:
    """Weights in fp16 become fp32, and no pass makes them smaller again."""
    model = positions()
    (mix,) = (tensor for tensor in model.graph.initializer if tensor.name == "mix")
    half = numpy_helper.to_array(mix).astype(np.float16)
    mix.CopyFrom(numpy_helper.from_array(half, "half"))
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["mix"], to=TensorProto.FLOAT))
    onnx.save(model, tmp_path / "half.onnx")
    samples = np.random.default_rng(5).standard_normal((40, LENGTH, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=samples)
    answer = build(Home(tmp_path).build("half.onnx", "--chain", "none"), tmp_path / "half.edgepack")
    (caution,) = answer.document["cautions"]
    assert caution["code"] == "larger"
    assert caution["ratio"] == answer.document["sizes"]["ratio"] > 1.5
    assert format_title(answer.document).startswith("PASS, but larger than half.onnx")


def test_a_checkpoint_is_compared_with_its_graph_where_that_is_smaller(tmp_path: Path) -> None:
    import torch

    (tmp_path / "wide.py").write_text(
        "from torch import nn\n\n\ndef wide():\n"
        "    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))\n"
    )
    random = np.random.default_rng(6)
    shapes = {"0.weight": (256, 64), "0.bias": (256,), "2.weight": (8, 256), "2.bias": (8,)}
    state = {
        name: torch.from_numpy(random.standard_normal(shape).astype(np.float32) / 8)
        for name, shape in shapes.items()
    }
    trained = {"state_dict": state, "optimizer": {"moments": torch.zeros(200_000)}}
    torch.save(trained, tmp_path / "trained.pt")
    np.savez(tmp_path / "calibration.npz", x=random.standard_normal((40, 64)).astype(np.float32))
    options = ["--arch", f"{tmp_path / 'wide.py'}:wide", "--input", "x:float32:batch,64"]
    answer = build(Home(tmp_path).build("trained.pt", *options), tmp_path / "trained.edgepack")
    sizes = answer.document["sizes"]
    assert sizes["file_bytes"] == (tmp_path / "trained.pt").stat().st_size > 800_000
    assert sizes["basis"] == "export"
    assert sizes["original_bytes"] == sizes["export_bytes"] < 100_000
    assert "trained.pt has" in describe_size(answer.document)
    assert answer.document["cautions"] == []
