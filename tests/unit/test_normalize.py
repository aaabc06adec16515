"""ONNX models as users bring them: low precision, fused, unsorted, quantized, in training mode."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import GraphError, SourceError
from edgepack.graph.check import check_dynamic_axes
from edgepack.graph.opset import load_onnx, to_opset
from edgepack.graph.run import Runner
from edgepack.graph.simplify import check_failure
from edgepack.normalize import (
    batch_dependent,
    integer_operators,
    promote_floats,
    random_dropouts,
    sort_nodes,
    split_fused,
    types_to_promote,
)
from edgepack.source import load
from edgepack.source.onnx_file import load_onnx as load_source

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 8)).astype(np.float32)


def weights(*shape: int) -> np.ndarray:
    return (RANDOM.normal(size=shape) / 3).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto],
    initializers: dict[str, np.ndarray],
    *,
    inner: int = TensorProto.FLOAT,
    opset: int = 18,
    shape: tuple[int | str, ...] = ("N", 8),
    rank: int = 2,
) -> onnx.ModelProto:
    """A model from x to y, with operators of ONNX and of onnxruntime."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", inner, shape)],
            [helper.make_tensor_value_info("y", inner, ["N"] + [None] * (rank - 1))],
            [numpy_helper.from_array(value, name) for name, value in initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )


def two_layers(dtype: type = np.float32, inner: int = TensorProto.FLOAT) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    constants = {"w": weights(8, 6), "b": weights(6), "w2": weights(6, 4)}
    return graph(nodes, {k: v.astype(dtype) for k, v in constants.items()}, inner=inner)


def run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("dtype", "inner", "name"),
    [
        (np.float16, TensorProto.FLOAT16, "float16"),
        (np.float64, TensorProto.DOUBLE, "float64"),
    ],
)
def test_layers_of_low_or_double_precision_become_float32_inside(dtype, inner, name):
    model = two_layers(dtype, inner)
    assert types_to_promote(model, for_passes=True) == (name,)
    promoted = promote_floats(model, (name,))
    assert check_failure(promoted) is None
    x = X.astype(dtype)
    expected, answer = run(model, x), run(promoted, x)
    assert answer.dtype == expected.dtype == dtype  # the interface keeps its types
    np.testing.assert_allclose(answer, expected, atol=5e-3)
    types = {t.name: t.data_type for t in promoted.graph.initializer}
    assert set(types.values()) == {TensorProto.FLOAT}


def test_float16_stays_where_no_pass_reads_the_graph():
    assert types_to_promote(two_layers(np.float16, TensorProto.FLOAT16), for_passes=False) == ()


def test_an_input_that_is_an_output_too_is_cast_once():
    model = two_layers(np.float16, TensorProto.FLOAT16)
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 8]))
    promoted = promote_floats(model, ("float16",))
    session = onnxruntime.InferenceSession(promoted.SerializeToString())
    x = X.astype(np.float16)
    np.testing.assert_array_equal(session.run(None, {"x": x})[1], x)


def test_a_bfloat16_file_is_fed_and_answers_in_float32(tmp_path: Path) -> None:
    model = two_layers(ml_dtypes.bfloat16, TensorProto.BFLOAT16)
    onnx.save(model, tmp_path / "m.onnx")
    source = load(tmp_path / "m.onnx")
    assert list(map(str, source.inputs or ())) == ["x:float32:N,8"]
    w = [numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer]
    expected = np.maximum(X @ w[0] + w[1], 0) @ w[2]
    np.testing.assert_allclose(source.run({"x": X})[0], expected, atol=1e-5)
    result = load_onnx(tmp_path / "m.onnx", 18, source.inputs or ())
    assert "bfloat16 weights cast to float32" in result.notes
    check_dynamic_axes(result.model, source.inputs or (), {"x": X}, source.run)


def test_a_float64_convolution_that_onnxruntime_lacks_is_computed_in_float32(
    tmp_path: Path,
) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    model = graph(
        nodes,
        {"w": weights(2, 3, 3, 3).astype(np.float64)},
        inner=TensorProto.DOUBLE,
        shape=("N", 3, 8, 8),
        rank=4,
    )
    onnx.save(model, tmp_path / "m.onnx")
    source = load(tmp_path / "m.onnx")
    assert "float64 computed in float32, which onnxruntime has" in source.notes
    assert source.run({"x": RANDOM.normal(size=(1, 3, 8, 8))})[0].dtype == np.float64
    load_onnx(tmp_path / "m.onnx", 18, source.inputs or (), for_passes=False)


def test_nodes_out_of_order_are_sorted_with_a_note(tmp_path: Path) -> None:
    model = two_layers()
    expected = run(model)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    source = load(tmp_path / "m.onnx")
    assert any(note.startswith("nodes sorted topologically") for note in source.notes)
    np.testing.assert_allclose(source.run({"x": X})[0], expected, rtol=1e-6)
    ready = load_onnx(tmp_path / "m.onnx", 18).model
    assert [node.name for node in ready.graph.node] == ["first", "relu", "second"]
    assert sort_nodes(ready) == 0


def test_a_cycle_is_left_for_the_checker_to_refuse(tmp_path: Path) -> None:
    model = two_layers()
    model.graph.node[0].input[0] = "r"
    assert sort_nodes(model) == 0
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SourceError) as caught:
        load_source(tmp_path / "m.onnx")
    assert caught.value.code == "source-onnx-invalid"


def test_external_data_without_a_length_is_read_no_further_than_its_tensor(tmp_path: Path) -> None:
    model = two_layers()
    expected = run(model)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        kept = [e for e in tensor.external_data if e.key != "length"]
        copies = [onnx.StringStringEntryProto.FromString(e.SerializeToString()) for e in kept]
        del tensor.external_data[:]
        tensor.external_data.extend(copies)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    source = load(tmp_path / "m.onnx")
    np.testing.assert_allclose(source.run({"x": X})[0], expected, rtol=1e-6)
    np.testing.assert_allclose(run(load_onnx(tmp_path / "m.onnx", 18).model), expected, rtol=1e-6)


FUSED = {
    "FusedMatMul": (
        helper.make_node(
            "FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1, alpha=0.5
        ),
        {"w": weights(6, 8)},
        ["Transpose", "MatMul", "Mul"],
    ),
    "FusedGemm": (
        helper.make_node(
            "FusedGemm",
            ["x", "w", "b"],
            ["y"],
            domain="com.microsoft",
            activation="LeakyRelu",
            activation_alpha=0.1,
        ),
        {"w": weights(8, 6), "b": weights(6)},
        ["Gemm", "LeakyRelu"],
    ),
    "FusedConv": (
        helper.make_node(
            "FusedConv",
            ["x", "w", "b", "z"],
            ["y"],
            domain="com.microsoft",
            activation="Clip",
            activation_params=[-0.5, 0.5],
        ),
        {"w": weights(4, 3, 1, 1), "b": weights(4), "z": weights(1, 4, 5, 5)},
        ["Conv", "Add", "Clip"],
    ),
}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_layers_are_split_and_compute_the_same(kind):
    node, constants, kinds = FUSED[kind]
    picture = kind == "FusedConv"
    x = RANDOM.normal(size=(1, 3, 5, 5)).astype(np.float32) if picture else X
    shape, rank = (("N", 3, 5, 5), 4) if picture else (("N", 8), 2)
    model = graph([node], constants, shape=shape, rank=rank)
    expected = run(model, x)
    assert split_fused(model) == (kind,)
    assert [part.op_type for part in model.graph.node] == kinds
    assert check_failure(model) is None
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


def test_operators_of_a_newer_opset_are_expanded_by_their_function_bodies():
    nodes = [
        helper.make_node("Attention", ["x", "x", "x"], ["a"], q_num_heads=2, kv_num_heads=2),
        helper.make_node("RMSNormalization", ["a", "s"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
    ]
    constants = {"s": np.ones(8, np.float32), "w": weights(8, 4)}
    model = graph(nodes, constants, opset=23, shape=("N", 5, 8), rank=3)
    x = RANDOM.normal(size=(2, 5, 8)).astype(np.float32)
    older = to_opset(model, 18).model
    assert older.opset_import[0].version == 18
    assert {"Attention", "RMSNormalization"}.isdisjoint(n.op_type for n in older.graph.node)
    np.testing.assert_allclose(Runner(older).run({"x": x})[0], run(model, x), atol=1e-5)


def test_an_operator_of_a_newer_opset_raises_the_opset_as_far_as_engines_go():
    nodes = [
        helper.make_node("Conv", ["x", "o"], ["offset"], pads=[1] * 4),
        helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], pads=[1] * 4),
    ]
    constants = {"o": weights(18, 3, 3, 3), "w": weights(4, 3, 3, 3)}
    model = graph(nodes, constants, opset=22, shape=("N", 3, 6, 6), rank=4)
    result = to_opset(model, 18)
    assert result.model.opset_import[0].version == 19
    assert "its operators need 19, the target states 18" in result.notes[0]
    x = RANDOM.normal(size=(1, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(result.model, x), run(model, x), atol=1e-6)


def test_an_operator_that_no_engine_runs_is_named_in_the_refusal():
    nodes = [helper.make_node("TensorScatter", ["x", "u"], ["y"], axis=1)]
    model = graph(nodes, {"u": weights(3, 2)}, opset=24)
    with pytest.raises(GraphError) as caught:
        to_opset(model, 18)
    assert caught.value.code == "opset-conversion"
    assert "TensorScatter (24)" in caught.value.why


def test_training_mode_is_recognised_in_every_opset():
    def norm(opset: int, outputs: list[str], **attributes: int) -> onnx.ModelProto:
        node = helper.make_node(
            "BatchNormalization", ["x", *"sbmv"], outputs, name="norm", **attributes
        )
        return graph([node], dict.fromkeys("sbmv", np.ones(8, np.float32)), opset=opset)

    assert batch_dependent(norm(14, ["y", "m2", "v2"], training_mode=1)) == ("norm",)
    assert batch_dependent(norm(9, ["y", "m2", "v2", "m3", "v3"])) == ("norm",)
    assert batch_dependent(norm(14, ["y"])) == ()
    assert batch_dependent(norm(6, ["y"], is_test=1)) == ()


@pytest.mark.parametrize(("training", "ratio", "random"), [(1, 0.5, 1), (0, 0.5, 0), (1, 0.0, 0)])
def test_dropout_is_random_only_in_training_mode(tmp_path: Path, training, ratio, random):
    model = two_layers()
    model.graph.node[2].input[0] = "d"
    dropout = helper.make_node("Dropout", ["r", "ratio", "mode"], ["d"], name="drop")
    model.graph.node.insert(2, dropout)
    for name, value in (("ratio", np.float32(ratio)), ("mode", np.bool_(training))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    assert len(random_dropouts(model)) == random
    onnx.save(model, tmp_path / "m.onnx")
    if not random:
        load(tmp_path / "m.onnx")
        return
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "m.onnx")
    assert caught.value.code == "source-onnx-random"
    assert "drop" in caught.value.why


def test_quantized_graphs_are_recognised_by_their_operators():
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph(dynamic, {"w": np.ones((8, 2), np.int8)})
    assert integer_operators(model) == ("DynamicQuantizeLinear", "MatMulInteger")
    assert integer_operators(two_layers()) == ()
