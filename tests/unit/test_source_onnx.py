"""ONNX files: inputs from the graph, external data beside them, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import SourceError
from edgepack.source import load, recognise

W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def model(
    shape: tuple[int | str | None, ...] = ("N", 4), *, weight_is_input: bool = False
) -> onnx.ModelProto:
    """x @ W, clipped from below, with an infinity that is meant."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Clip", ["y", "low", "high"], ["scores"]),
        ],
        "g",
        inputs,
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 3])],
        [
            numpy_helper.from_array(W, "w"),
            numpy_helper.from_array(np.array(0, np.float32), "low"),
            numpy_helper.from_array(np.array(np.inf, np.float32), "high"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def test_a_file_is_run_as_it_is(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.pt")
    assert recognise(tmp_path / "m.pt") == "onnx"
    source = load(tmp_path / "m.pt")
    np.testing.assert_allclose(source.run({"x": X})[0], np.maximum(X @ W, 0), rtol=1e-5, atol=1e-6)
    assert source.kind == "onnx"
    assert source.module is None
    assert source.output_names == ("scores",)
    assert list(map(str, source.inputs or ())) == ["x:float32:N,4"]
    assert source.parameters == 14


def test_unnamed_axes_get_names_and_initializers_are_no_inputs(tmp_path: Path) -> None:
    onnx.save(model((None, 4), weight_is_input=True), tmp_path / "m.onnx")
    source = load(tmp_path / "m.onnx")
    assert list(map(str, source.inputs or ())) == ["x:float32:batch,4"]


def test_external_data_is_read_counted_and_digested(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    source = load(path)
    np.testing.assert_allclose(source.run({"x": X})[0], np.maximum(X @ W, 0), rtol=1e-5, atol=1e-6)
    assert source.bytes == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert load(path).digest != source.digest


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_packed_external_data_has_its_own_size(tmp_path: Path, kind: str) -> None:
    proto = model()
    packed = helper.make_tensor("q", getattr(TensorProto, kind), [5], [1, 2, 3, 4, 5])
    proto.graph.initializer.append(packed)
    proto.graph.node.append(helper.make_node("Cast", ["q"], ["wide"], to=TensorProto.FLOAT))
    proto.opset_import[0].version = 21
    proto.ir_version = 10
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert load(path).kind == "onnx"


def test_a_run_that_fails_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The check of dynamic axes tries sizes that may not fit: no lines of onnxruntime's own."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "abc"]
    nodes = [helper.make_node("Add", ["a", "b"], ["c"])]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    opsets = [helper.make_opsetid("", 18)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    found = load(path, arch=None, arch_args={}, trust_pickle=False, search=())
    with pytest.raises(SourceError):
        found.run({"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)})
    assert capfd.readouterr() == ("", "")
