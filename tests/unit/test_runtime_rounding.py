"""Roundings written out: why they must be, and that they are those of a GPU that stores fp16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.runtime.session.rounding import round_halves
from support.half_nets import as_on_gpu, converted, loud, naive
from support.quantize_nets import gated, images, residual, run


def half_model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], typed: dict[str, int],
    outputs: dict[str, int],
) -> onnx.ModelProto:  # fmt: skip
    """A model from x [n, 4] in float32, with `value_info` of the types given."""
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(n, kind, ["n", 4]) for n, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info(n, kind, None) for n, kind in typed.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def doubled_and_back() -> onnx.ModelProto:
    """x * 256 * 256 / 256 / 256 in fp16: infinite from 1 on."""
    nodes = [helper.make_node("Cast", ["x"], ["h0"], to=TensorProto.FLOAT16)]
    for place, operator in enumerate(("Mul", "Mul", "Div", "Div")):
        nodes.append(helper.make_node(operator, [f"h{place}", "c"], [f"h{place + 1}"]))
    nodes.append(helper.make_node("Cast", ["h4"], ["y"], to=TensorProto.FLOAT))
    typed = {f"h{place}": TensorProto.FLOAT16 for place in range(5)}
    return half_model(nodes, {"c": np.float16(256)}, typed, {"y": TensorProto.FLOAT})


def test_onnxruntime_on_a_cpu_rounds_nothing_and_hides_an_overflow() -> None:
    """The reason for all this. Should onnxruntime ever round by itself, this test tells."""
    x = np.array([[1.0, 0.1, 100.0, -3.0]], np.float32)
    assert np.isfinite(run(doubled_and_back(), {"x": x})[0]).all()
    found = as_on_gpu(doubled_and_back(), {"x": x})[0]
    assert found.tolist() == [[np.inf, float(np.float16(0.1)), np.inf, -np.inf]]


def test_every_tensor_is_rounded_to_the_nearest_fp16() -> None:
    """A chain of products, against numpy, which rounds after each."""
    nodes = [helper.make_node("Cast", ["x"], ["h0"], to=TensorProto.FLOAT16)]
    factors = np.random.default_rng(0).uniform(0.5, 1.5, (6, 4)).astype(np.float16)
    for place in range(6):
        nodes.append(helper.make_node("Mul", [f"h{place}", f"c{place}"], [f"h{place + 1}"]))
    nodes.append(helper.make_node("Cast", ["h6"], ["y"], to=TensorProto.FLOAT))
    typed = {f"h{place}": TensorProto.FLOAT16 for place in range(7)}
    constants = {f"c{place}": factor for place, factor in enumerate(factors)}
    model = half_model(nodes, constants, typed, {"y": TensorProto.FLOAT})
    x = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
    expected = x.astype(np.float16)
    for factor in factors:
        expected = (expected.astype(np.float32) * factor.astype(np.float32)).astype(np.float16)
    assert np.array_equal(as_on_gpu(model, {"x": x})[0], expected.astype(np.float32))
    assert not np.array_equal(run(model, {"x": x})[0], expected.astype(np.float32))


@pytest.mark.parametrize("net", [residual, gated, loud])
def test_the_edited_graph_is_valid_and_keeps_its_interface(net) -> None:
    half = converted(net(), {"x": images(8)}).model
    edited = onnx.load_model_from_string(round_halves(half.SerializeToString()))
    onnx.checker.check_model(edited, full_check=True)
    assert list(edited.graph.input) == list(half.graph.input)
    assert list(edited.graph.output) == list(half.graph.output)
    assert list(edited.graph.initializer) == list(half.graph.initializer)
    assert list(edited.opset_import) == list(half.opset_import)


def test_what_has_no_fp16_is_given_back_as_it_is() -> None:
    model = residual().SerializeToString()
    assert round_halves(model) is model
    # Constants alone are stored in fp16: nothing is made in it.
    nodes = [
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    stored = half_model(nodes, {"c": np.float16(3)}, {}, {"y": TensorProto.FLOAT})
    assert round_halves(stored.SerializeToString()) == stored.SerializeToString()


def test_fp16_outputs_keep_their_type() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "c"], ["y"]),
        helper.make_node("Add", ["y", "c"], ["z"]),
    ]
    kinds = {"y": TensorProto.FLOAT16, "z": TensorProto.FLOAT16}
    model = half_model(nodes, {"c": np.float16(300)}, {"h": TensorProto.FLOAT16}, kinds)
    x = np.array([[300.0, 1.0, 0.3, -300.0]], np.float32)
    y, z = as_on_gpu(model, {"x": x})
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16) * np.float16(300)
        assert np.array_equal(y, expected)
        assert np.array_equal(z, expected + np.float16(300))
    assert y.dtype == z.dtype == np.float16


def test_a_converter_of_others_is_seen_through_too() -> None:
    """Its graph has fp16 constants, Casts and names of its own."""
    feed = {"x": images(8)}
    assert np.isfinite(run(naive(loud()), feed)[0]).all()
    assert not np.isfinite(as_on_gpu(naive(loud()), feed)[0]).all()
    real = run(residual(), feed)[0]
    np.testing.assert_allclose(as_on_gpu(naive(residual()), feed)[0], real, atol=0.01)


@pytest.mark.parametrize("cut", [40, 200, 1000])
def test_what_is_cut_off_is_refused(cut: int) -> None:
    model = converted(residual(), {"x": images(8)}).model.SerializeToString()
    with pytest.raises(ValueError, match=r"ends after its message|does not end"):
        round_halves(model[:-cut])


def test_a_wire_type_that_protobuf_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown wire type"):
        round_halves(b"\x0f\x00")
