"""The whole pass on small networks: what onnxruntime fuses, and that the numbers hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.data.samples import Batch
from edgepack.ledger import PassResult
from edgepack.onnx_tools.fusion import fuse
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import (
    Arrays,
    Net,
    Steps,
    gated,
    images,
    residual,
    run,
    snr_db,
)


def quantized(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], **options: Any
) -> PassResult[Any]:
    progress = Steps()
    result = quantize(model, Arrays(**inputs), QuantizeOptions(**options), progress)
    onnx.checker.check_model(result.model, full_check=True)
    assert progress.done == progress.total
    return result


class Fours(Arrays):
    """Samples for a model whose batch axis is fixed to four."""

    def batches(self, size: int) -> Iterator[Batch]:
        return super().batches(4)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in fuse(model).graph.node)


def quality(model: onnx.ModelProto, result: PassResult[Any], inputs: dict[str, Any]) -> float:
    pairs = zip(run(model, inputs), run(result.model, inputs), strict=True)
    return min(snr_db(real, found) for real, found in pairs)


def test_a_residual_network_runs_in_integers_from_end_to_end() -> None:
    model, inputs = residual(), {"x": images(60)}
    result = quantized(model, inputs)
    assert operators(result.model) == {
        "QuantizeLinear": 1,
        "QLinearConv": 5,
        "MaxPool": 1,
        "QLinearAdd": 2,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }
    assert result.details["integer_only"]
    assert result.details["layers_quantized"] == 6
    assert quality(model, result, {"x": images(20, seed=9)}) > 25
    # The dynamic batch axis is still one, and the model given is untouched.
    assert run(result.model, {"x": images(3)})[0].shape == (3, 10)
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    # One Q and one DQ for every quantized tensor: input, 5 conv, pool, 2 add, mean, flatten.
    kinds = Counter(node.op_type for node in result.model.graph.node)
    assert kinds["QuantizeLinear"] == 11
    assert result.model.ir_version <= 10


def test_the_same_input_gives_the_same_bytes() -> None:
    inputs = {"x": images(24)}
    first, second = (quantized(residual(), inputs).model for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_every_calibrator_and_rounding_works(calibrator: str, rounding: str) -> None:
    model, inputs = residual(), {"x": images(32)}
    result = quantized(model, inputs, calibrator=calibrator, rounding=rounding)
    assert quality(model, result, inputs) > 20
    assert result.details["calibrator"] == calibrator


def test_bias_correction_takes_out_the_mean_error() -> None:
    model, inputs = residual(), {"x": images(64)}
    drift = []
    for correct in (False, True):
        result = quantized(model, inputs, bias_correction=correct, rounding="nearest")
        error = run(result.model, inputs)[0] - run(model, inputs)[0]
        drift.append(np.square(error.mean(axis=0)).sum())
    assert drift[1] < 0.5 * drift[0]


def test_gemms_fuse_with_their_relus() -> None:
    net = Net()
    x = net.op("Relu", net.gemm("x", 20, 33))
    model = net.model({"x": ["n", 20]}, [net.gemm(x, 33, 5)])
    inputs = {"x": np.random.default_rng(1).standard_normal((80, 20)).astype(np.float32)}
    result = quantized(model, inputs)
    assert operators(result.model) == {"QuantizeLinear": 1, "QGemm": 2}
    assert quality(model, result, inputs) > 30


def test_gates_concatenation_and_pools_stay_in_integers() -> None:
    model = gated()
    inputs = {"x": images(40)}
    result = quantized(model, inputs)
    assert operators(result.model) == {
        "QuantizeLinear": 1,
        "QLinearConv": 4,
        "QLinearSigmoid": 2,
        "QLinearMul": 2,
        "QLinearGlobalAveragePool": 1,
        "QLinearLeakyRelu": 1,
        "QLinearConcat": 1,
        "QLinearAveragePool": 1,
        "DequantizeLinear": 1,
    }
    assert quality(model, result, inputs) > 25


def test_a_clip_vanishes_and_its_bound_holds() -> None:
    net = Net()
    low, high = net.constant(np.float32(0)), net.constant(np.float32(0.4))
    x = net.op("Clip", net.conv("x", 3, 8), low, high)
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 8, 4)])
    inputs = {"x": images(40)}
    result = quantized(model, inputs)
    assert operators(result.model)["QLinearConv"] == 2
    assert not operators(result.model)["Clip"]
    assert quality(model, result, inputs) > 25
    scale = next(t for t in result.model.graph.initializer if t.name == f"{x}_scale")
    assert 255 * numpy_helper.to_array(scale) == pytest.approx(0.4, rel=0.02)


def test_a_relu_beside_another_reader_becomes_an_integer_kernel() -> None:
    net = Net()
    x = net.conv("x", 3, 8)
    x = net.op("Add", x, net.conv(net.op("Relu", x), 8, 8))
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 8, 4)])
    result = quantized(model, {"x": images(40)})
    found = operators(result.model)
    assert found["QLinearLeakyRelu"] == 1
    assert found["QLinearAdd"] == 1
    assert result.details["integer_only"]
    assert quality(model, result, {"x": images(40)}) > 25


def test_attention_stays_float_and_its_projections_become_integer() -> None:
    net, width = Net(), 16
    projections = []
    for _ in range(3):
        product = net.op("MatMul", "x", net.constant(net.weights(width, width)))
        projections.append(net.op("Add", product, net.constant(net.weights(width, 4)[:, 0])))
    query, keys, values = projections
    scores = net.op("Softmax", net.op("MatMul", query, net.op("Transpose", keys, perm=[0, 2, 1])))
    mixed = net.op("MatMul", scores, values)
    ones, zeros = (net.constant(np.full(width, v, np.float32)) for v in (1, 0))
    norm = net.op("LayerNormalization", net.op("Add", "x", mixed), ones, zeros)
    model = net.model({"x": ["n", "t", width]}, [norm])
    inputs = {"x": np.random.default_rng(2).standard_normal((40, 6, width)).astype(np.float32)}
    result = quantized(model, inputs)
    assert operators(result.model)["MatMulIntegerToFloat"] == 3
    assert not result.details["integer_only"]
    reasons = {layer["reason"] for layer in result.details["layers_float"]}
    assert any("both operands are activations" in reason for reason in reasons)
    assert quality(model, result, inputs) > 30
    assert run(result.model, {"x": inputs["x"][:2, :4]})[0].shape == (2, 4, width)


def test_a_recurrent_layer_stays_float_where_the_options_say_so() -> None:
    net, hidden = Net(), 8
    x = net.op("Relu", net.conv("x", 3, 4))
    x = net.op("Reshape", x, net.constant(np.array([64, 1, 16])))
    gates = [net.constant(net.weights(1, 4 * hidden, size)) for size in (16, hidden)]
    y = net.op("LSTM", x, *gates, hidden_size=hidden, outputs=3)
    y = net.op("Reshape", y, net.constant(np.array([64, hidden])))
    model = net.model({"x": [1, 3, 16, 16]}, [net.gemm(y, hidden, 3)])
    inputs = {"x": images(30)}
    progress = Steps()
    options = QuantizeOptions(batch_size=1, recurrent="float")
    result = quantize(model, Arrays(**inputs), options, progress)
    assert result.details["layers_quantized"] == 2
    (left,) = result.details["layers_float"]
    assert left["operator"] == "LSTM"
    assert "recurrent" in left["reason"]
    assert quality(model, result, {"x": inputs["x"][:1]}) > 25


def test_excluded_layers_stay_float() -> None:
    model = residual()
    name = next(node.name for node in model.graph.node if node.op_type == "Gemm")
    result = quantized(model, {"x": images(24)}, exclude=(name,))
    assert operators(result.model)["Gemm"] == 1
    (left,) = result.details["layers_float"]
    assert left == {"name": name, "operator": "Gemm", "reason": "excluded by name"}


def test_shared_weights_are_stored_once() -> None:
    net = Net()
    weight = net.constant(net.weights(16, 16), "shared")
    bias = net.constant(net.weights(16, 4)[:, 0])
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.op("Gemm", x, weight, bias, transB=1))
    model = net.model({"x": ["n", 16]}, [net.gemm(x, 16, 4)])
    inputs = {"x": np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)}
    result = quantized(model, inputs)
    names = [t.name for t in result.model.graph.initializer if t.data_type == 3 and len(t.dims) > 1]
    assert sorted(names) == ["constant_2_quantized", "shared_quantized"]
    assert operators(result.model) == {"QuantizeLinear": 1, "QGemm": 4}
    assert quality(model, result, inputs) > 25


def test_a_tensor_that_is_also_an_output_keeps_its_name() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    model = net.model({"x": ["n", 3, 16, 16]}, [x, net.conv(x, 8, 4)])
    inputs = {"x": images(24)}
    result = quantized(model, inputs)
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]
    assert operators(result.model)["QLinearConv"] == 2
    assert quality(model, result, inputs) > 25


def test_a_dead_channel_with_a_bias_survives() -> None:
    net = Net()
    weight = net.weights(4, 3, 3, 3)
    weight[1] = 0
    bias = net.constant(np.float32([0.1, 7.5, -0.2, 0.0]))
    x = net.op("Conv", "x", net.constant(weight), bias, pads=[1] * 4)
    model = net.model({"x": ["n", 3, 16, 16]}, [x])
    found = run(quantized(model, {"x": images(24)}).model, {"x": images(4)})[0]
    assert found[:, 1] == pytest.approx(7.5, abs=0.05)


def test_an_activation_that_is_always_zero_is_reported() -> None:
    net = Net()
    # A bias far below what the weights can reach: Relu never lets anything through.
    bias = net.constant(np.full(4, -1e3, np.float32))
    x = net.op("Conv", "x", net.constant(net.weights(4, 3, 3, 3)), bias, pads=[1] * 4)
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(net.op("Relu", x), 4, 2)])
    result = quantized(model, {"x": images(24)})
    assert any("0 on every sample" in note for note in result.notes)
    pairs = zip(run(model, {"x": images(4)}), run(result.model, {"x": images(4)}), strict=True)
    assert all(np.abs(real - found).max() < 0.02 for real, found in pairs)


def test_large_intermediates_are_looked_at_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.onnx_tools import stream

    whole = quantized(residual(), {"x": images(16)}, batch_size=1).model
    monkeypatch.setattr(stream, "HELD_BYTES", 16 * 16 * 16 * 4)
    parts = quantized(residual(), {"x": images(16)}, batch_size=1).model
    # Kernels of onnxruntime differ with the outputs that they are asked for, by a float's last bit.
    pairs = zip(whole.graph.initializer, parts.graph.initializer, strict=True)
    for expected, found in pairs:
        assert numpy_helper.to_array(found) == pytest.approx(
            numpy_helper.to_array(expected), rel=1e-5, abs=1e-5
        )


def test_names_that_the_graph_has_taken_are_left_alone() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    # What the pass would call the scale of that activation, its integers, and its own zeros.
    for name in (f"{x}_scale", f"{x}_quantized", "zeros_int8_8"):
        x = net.op("Add", x, net.constant(np.full((8, 1, 1), 0.5, np.float32), name))
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 8, 4)])
    inputs = {"x": images(24)}
    result = quantized(model, inputs)
    assert quality(model, result, inputs) > 25


def test_older_and_newer_opsets_work() -> None:
    for opset in (13, 17, 21):
        net = Net()
        x = net.op("Relu", net.conv("x", 3, 8))
        model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 8, 4)], opset)
        result = quantized(model, {"x": images(24)})
        assert operators(result.model)["QLinearConv"] == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "dynamic", "rounding": "gptq"},
        {"mode": "weights", "bits": 4, "block": 16, "rounding": "gptq"},
    ],
    ids=str,
)
def test_a_layer_that_reads_nothing_on_the_first_samples(options: dict[str, Any]) -> None:
    net = Net()
    largest = net.op("ReduceMax", "x", net.constant(np.array([1])), keepdims=0)
    found = net.op("NonZero", net.op("Greater", largest, net.constant(np.float32(1.5))))
    rows = net.op("Gather", "x", net.op("Squeeze", found, net.constant(np.array([0]))))
    model = net.model({"x": ["n", 32]}, [net.gemm(net.op("Relu", net.gemm(rows, 32, 32)), 32, 8)])
    values = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    values[:8] = np.clip(values[:8], -1, 1)
    result = quantized(model, {"x": values}, **options)
    assert quality(model, result, {"x": values[8:]}) > 15


@pytest.mark.parametrize("axes", [1, 2])
def test_an_average_that_reaches_over_the_end(axes: int) -> None:
    net = Net()
    weight = net.constant(net.weights(8, 3, *[3] * axes))
    x = net.op(
        "AveragePool", net.op("Conv", "x", weight, pads=[1] * 2 * axes), kernel_shape=[3] * axes,
        strides=[2] * axes, ceil_mode=1, count_include_pad=1,
    )  # fmt: skip
    x = net.op("Conv", x, net.constant(net.weights(4, 8, *[1] * axes)))
    values = images(40) if axes == 2 else images(40).reshape(40, 3, 256)[..., :32]
    model = net.model({"x": ["n", *values.shape[1:]]}, [x])
    assert quality(model, quantized(model, {"x": values}), {"x": values}) > 30


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_a_bias_for_each_row_is_none_for_each_channel(mode: str) -> None:
    net = Net()
    column = net.constant(np.arange(4, dtype=np.float32)[:, None])
    x = net.op("Gemm", "x", net.constant(net.weights(16, 4)), column)
    model = net.model({"x": [4, 16]}, [net.gemm(x, 4, 3)])
    inputs = {"x": np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)}
    progress = Steps()
    options = QuantizeOptions(mode=mode, rounding="gptq")
    result = quantize(model, Fours(**inputs), options, progress)
    left = result.details["layers_float"]
    assert [layer["reason"] for layer in left] == [
        "its bias of shape (4, 1) is not one value per output channel"
    ]
    assert quality(model, result, {"x": inputs["x"][:4]}) > 25


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT32, onnx.TensorProto.DOUBLE])
def test_a_spatial_mean_of_other_numbers_is_left_as_it_is(kind: int) -> None:
    net = Net()
    x = net.op("Cast", net.op("Mul", net.conv("x", 3, 8), net.constant(np.float32(100))), to=kind)
    mean = net.op("ReduceMean", x, net.constant(np.array([2, 3])), keepdims=1)
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(net.op("Cast", mean, to=1), 8, 4, 1)])
    result = quantized(model, {"x": images(40)})
    assert operators(result.model)["ReduceMean"] == 1
    assert quality(model, result, {"x": images(40)}) > 15


def test_an_activation_that_is_called_as_the_bias_of_a_layer() -> None:
    net = Net()
    net.conv("x", 3, 8)
    net.nodes[-1].name = "layer"
    first = net.nodes[-1].output[0]
    net.op("Add", first, net.conv("x", 3, 8))
    net.nodes[-1].output[0] = "layer_bias"
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv("layer_bias", 8, 8)])
    assert quality(model, quantized(model, {"x": images(40)}), {"x": images(40)}) > 25
    # Without a bias of its own the layer gets one when its mean error is taken out.
    del model.graph.node[0].input[2:]
    assert quality(model, quantized(model, {"x": images(40)}), {"x": images(40)}) > 25


@pytest.mark.parametrize(
    "options",
    [{}, {"scheme": "tensorrt", "range": "full"}, {"mode": "dynamic", "rounding": "gptq"}],
    ids=str,
)
def test_layers_in_subgraphs_are_told_of(options: dict[str, Any]) -> None:
    net = Net()
    weight = net.constant(net.weights(16, 16))
    first = net.op("MatMul", "x", weight)
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["state", weight], ["product"], name="inner"),
            onnx.helper.make_node("Tanh", ["product"], ["next"]),
            onnx.helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [value("i", 7, []), value("go", 9, []), value("state", 1, None)],
        [value("on", 9, []), value("next", 1, None)],
    )
    again, go = net.constant(np.int64(3)), net.constant(np.array(True))
    x = net.op(
        "Reshape", net.op("Loop", again, go, first, body=body), net.constant(np.array([-1, 16]))
    )
    model = net.model({"x": ["n", 16]}, [net.op("MatMul", x, net.constant(net.weights(16, 4)))])
    inputs = {"x": np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)}
    result = quantized(model, inputs, **options)
    name = model.graph.node[1].name
    assert result.details["layers_quantized"] == 2
    assert result.details["layers_float"] == [
        {"name": "inner", "operator": "MatMul", "reason": f"it is in a subgraph of {name} (Loop)"}
    ]
    assert quality(model, result, inputs) > 25
