"""TensorRT as an engine of a build: its rules, what it asks of the device, what it proves here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

from edgepack import engine
from edgepack.engine import tensorrt, tensorrt_rtx
from edgepack.errors import EngineError
from edgepack.passes.half import HalfOptions, half
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.spec import target
from support.linear import linear_onnx
from support.quantize_nets import Arrays, Net, Steps, images, residual
from support.rtx_cases import needs_rtx, profiles_of

TARGET = target.load("tensorrt-int8")
JETSON = target.load("jetson-trt")


def quantized(scheme: str = "tensorrt", opset: int = 18) -> onnx.ModelProto:
    model = residual()
    model.opset_import[0].version = opset
    options = QuantizeOptions(scheme=scheme, range="full")
    found: onnx.ModelProto = quantize(model, Arrays(x=images(12)), options, Steps()).model
    return found


def refused(model: onnx.ModelProto, profile: target.Target = TARGET) -> EngineError:
    with pytest.raises(EngineError) as caught:
        tensorrt.build(model.SerializeToString(), profile, profiles_of(model))
    return caught.value


@needs_rtx
def test_a_build_tells_what_was_proved_and_what_was_not() -> None:
    model = quantized()
    built = tensorrt.build(model.SerializeToString(), TARGET, profiles_of(model))
    (note,) = (note for note in built.notes if "TensorRT-RTX" in note)
    assert "for compute capability 8.6, without a GPU" in note
    assert built.details["tensorrt_rtx"]["engine_bytes"] > 0
    (warning,) = built.warnings
    assert "not run by TensorRT" in warning
    # What ships is the ONNX; the device builds its own engine.
    assert onnx.load_model_from_string(built.model).graph == model.graph


@needs_rtx
def test_what_tensorrt_does_not_parse_is_refused_with_the_node() -> None:
    net = Net()
    model = net.model({"x": ["n", 4, 4]}, [net.op("Det", "x")])
    error = refused(model)
    assert error.code == "engine-parse"
    assert f"{model.graph.node[0].name} (Det)" in error.why
    assert "exclude" in error.hint


def test_without_tensorrt_rtx_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "MODULE", "tensorrt_rtx_that_is_nowhere")
    model = quantized()
    built = tensorrt.build(model.SerializeToString(), TARGET, profiles_of(model))
    assert any("TensorRT-RTX is not installed" in warning for warning in built.warnings)
    assert any(".[tensorrt-rtx]" in warning for warning in built.warnings)
    assert built.details["tensorrt_rtx"] is None
    assert not any("parsed and built" in note for note in built.notes)


@pytest.mark.parametrize("scheme", ["fbgemm", "qnnpack"])
def test_the_schemes_of_cpus_are_refused(scheme: str) -> None:
    error = refused(quantized(scheme))
    assert error.code == "engine-qdq"
    assert "x_QuantizeLinear (QuantizeLinear): its zero point is not 0" in error.why
    assert "scheme=tensorrt" in error.hint


def test_a_quantized_bias_is_refused() -> None:
    model = quantized()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    values = {t.name: t for t in model.graph.initializer}
    bias = numpy_helper.to_array(values[conv.input[2]])
    for name, value in (
        ("stored", np.rint(bias / 1e-4).astype(np.int32)),
        ("step", np.float32(1e-4)),
        ("zero", np.int32(0)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    pair = helper.make_node("DequantizeLinear", ["stored", "step", "zero"], ["b"], "bias_pair")
    model.graph.node.insert(0, pair)
    conv.input[2] = "b"
    error = refused(model)
    assert error.code == "engine-qdq"
    assert error.why == "bias_pair (DequantizeLinear): an int32 bias; TensorRT needs float"


def test_integer_operators_are_refused() -> None:
    model, _ = linear_onnx()
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"], "product"),
        ],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 3])],
        [numpy_helper.from_array(np.ones((8, 3), np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    error = refused(model)
    assert error.code == "engine-qdq"
    assert "product (MatMulInteger)" in error.why


@pytest.mark.parametrize(("version", "opset", "newest"), [("==10.3", 21, 20), (">=10,<12", 21, 20)])
def test_an_opset_that_the_release_does_not_read_is_refused(
    version: str, opset: int, newest: int
) -> None:
    error = refused(quantized(opset=opset), replace(TARGET, engine_version=version))
    assert error.code == "engine-opset"
    assert f"up to {newest}" in error.why


def test_the_opset_is_lowered_for_tensorrt_8_where_nodes_allow_it() -> None:
    jetson = target.load("jetson-jp5")
    model = quantized()
    (features,) = (node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    # The same mean, as torch exports it: ReduceMean of opset 18, whose axes are an input.
    features.op_type = "ReduceMean"
    features.input.append("axes")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    built = tensorrt.build(model.SerializeToString(), jetson, profiles_of(model))
    lowered = onnx.load_model_from_string(built.model)
    assert lowered.opset_import[0].version == 17
    onnx.checker.check_model(lowered, full_check=True)
    feed = {"x": images(2)}
    answers = []
    for proto in (model, lowered):
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        answers.append(session.run(None, feed)[0])
    np.testing.assert_array_equal(*answers)
    # Mish is of opset 18.
    model.graph.node[-1].op_type = "Mish"
    error = refused(model, jetson)
    assert error.code == "engine-opset"
    assert "which lacks what these nodes use: Mish" in error.why
    assert "opset_version=17" in error.hint


def test_what_the_fallback_does_not_read_is_refused() -> None:
    model = quantized()
    model.ir_version = 11
    assert refused(model).code == "engine-too-old"


def test_the_device_is_asked_for_numpy_and_the_fallback_and_for_no_tensorrt() -> None:
    for profile in (TARGET, JETSON):
        wanted = {Requirement(line).name for line in engine.requirements(profile).splitlines()}
        assert wanted == {"numpy", "onnxruntime"}
        alone = engine.requirements(replace(profile, fallback=""))
        assert {Requirement(line).name for line in alone.splitlines()} == {"numpy"}


def test_the_tensors_that_the_loader_rounds_are_named() -> None:
    model = half(quantized(opset=19), Arrays(x=images(12)), HalfOptions(), Steps()).model
    built = tensorrt.build(model.SerializeToString(), TARGET, profiles_of(model))
    assert built.details["half_tensors"] > 10


def test_the_shipped_profiles_are_what_they_are_said_to_be() -> None:
    assert (JETSON.arch, JETSON.jetpack, JETSON.engine_version) == ("aarch64", "6.2", "==10.3")
    assert JETSON.compute_capability == "==8.7"
    assert JETSON.workspace_mb == 1024
    for profile in (TARGET, JETSON):
        assert (profile.engine, profile.fallback) == ("tensorrt", "onnxruntime")
        assert profile.chain == "quantize,half"
        assert profile.read_table("quantize")["scheme"] == "tensorrt"
        # A GPU's floats are its own: no bits are promised.
        assert dict(profile.fidelity) == {"snr_db": 15}
