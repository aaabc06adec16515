"""Layers without a static int8 kernel worth having: each in the form that serves it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.errors import ChainError
from edgepack.ledger import PassResult
from edgepack.passes.quantize import QuantizeOptions, make_trials, quantize
from support.quantize_nets import Arrays, Net, Steps, run, snr_db

HIDDEN, WIDTH = 48, 24
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(*kinds: str, head: bool = True) -> onnx.ModelProto:
    """Recurrent layers in a row, and a product of the last one's states."""
    net, states, width = Net(), "x", WIDTH
    for kind in kinds:
        shapes = ((1, GATES[kind] * HIDDEN, size) for size in (width, HIDDEN))
        weights = [net.constant(net.weights(*shape)) for shape in shapes]
        states = net.op(kind, states, *weights, hidden_size=HIDDEN, outputs=2)
        states = net.op("Squeeze", states, net.constant(np.array([1])))
        width = HIDDEN
    if head:
        states = net.op("MatMul", states, net.constant(net.weights(HIDDEN, 5)))
    return net.model({"x": ["t", "n", WIDTH]}, [states])


def volumes() -> onnx.ModelProto:
    """Two convolutions over three axes, and a product of their mean."""
    net = Net()
    made = "x"
    for inputs, outputs in ((2, 8), (8, 16)):
        weights = net.constant(net.weights(outputs, inputs, 3, 3, 3))
        made = net.op("Relu", net.op("Conv", made, weights, pads=[1] * 6))
    made = net.op("Flatten", net.op("GlobalAveragePool", made))
    return net.model({"x": ["n", 2, 6, 6, 6]}, [net.gemm(made, 16, 3)])


def feeds(model: onnx.ModelProto, count: int = 20) -> dict[str, np.ndarray]:
    """Random numbers for the input x; a sequence is of three steps."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    sizes = [3, count, *shape[2:]] if len(shape) == 3 else [count, *shape[1:]]
    return {"x": np.random.default_rng(3).standard_normal(sizes).astype(np.float32)}


def quantized(model: onnx.ModelProto, **options: Any) -> PassResult[Any]:
    chosen = QuantizeOptions(batch_size=20, **options)
    result = quantize(model, Arrays(**feeds(model)), chosen, Steps())
    onnx.checker.check_model(result.model, full_check=True)
    return result


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def float_weights(model: onnx.ModelProto) -> int:
    """The largest float initializer's number of values."""
    arrays = map(numpy_helper.to_array, model.graph.initializer)
    return max(array.size for array in arrays if array.dtype == np.float32)


def test_recurrent_layers_and_products_get_each_their_own_form() -> None:
    model = recurrent("LSTM", "GRU", "RNN")
    result = quantized(model)
    kinds = operators(result.model)
    assert kinds["DynamicQuantizeLSTM"] == kinds["GRU"] == kinds["RNN"] == 1
    assert kinds["QuantizeLinear"] == 1
    assert not kinds["LSTM"]
    details = result.details
    assert details["layers_quantized"] == 1
    assert [layer["operator"] for layer in details["layers_dynamic"]] == ["LSTM"]
    assert [layer["operator"] for layer in details["layers_weights"]] == ["GRU", "RNN"]
    assert details["layers_float"] == []
    assert not details["integer_only"]
    assert float_weights(result.model) < 4 * HIDDEN * WIDTH
    assert len(result.model.SerializeToString()) < 0.4 * len(model.SerializeToString())
    fed = feeds(model)
    assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 25
    assert any("at run time" in note and "n_lstm" in note for note in result.notes)
    assert any("float arithmetic" in note and "n_gru" in note for note in result.notes)


def test_a_network_of_recurrent_layers_alone_is_quantized_too() -> None:
    result = quantized(recurrent("LSTM", head=False))
    assert operators(result.model)["DynamicQuantizeLSTM"] == 1
    assert result.details["layers_quantized"] == 0


@pytest.mark.parametrize("scheme", ["fbgemm", "qnnpack"])
def test_the_same_weights_as_in_the_dynamic_mode(scheme: str) -> None:
    model = recurrent("LSTM", head=False)
    static = quantized(model, scheme=scheme)
    dynamic = quantize(model, None, QuantizeOptions(mode="dynamic", scheme=scheme), Steps())
    fed = feeds(model)
    assert np.array_equal(run(static.model, fed)[0], run(dynamic.model, fed)[0])


@pytest.mark.parametrize(
    ("form", "operator", "share"), [("weights", "LSTM", 0.5), ("float", "LSTM", 1.1)]
)
def test_the_form_of_recurrent_layers_is_an_option(form: str, operator: str, share: float) -> None:
    model = recurrent("LSTM")
    result = quantized(model, recurrent=form)
    assert operators(result.model)[operator] == 1
    size = len(result.model.SerializeToString()) / len(model.SerializeToString())
    assert share - 0.25 < size < share


def test_volumes_keep_float_arithmetic_unless_int8_is_asked_for() -> None:
    model = volumes()
    stored, static = quantized(model), quantized(model, conv3d="static")
    left = quantized(model, conv3d="float")
    assert operators(stored.model)["QuantizeLinear"] == 1
    assert operators(static.model)["QuantizeLinear"] > 2
    assert [layer["operator"] for layer in stored.details["layers_weights"]] == ["Conv", "Conv"]
    assert {layer["reason"] for layer in left.details["layers_float"]} == {
        "three-dimensional: onnxruntime's int8 convolution is slower than its float one"
    }
    original = len(model.SerializeToString())
    assert len(stored.model.SerializeToString()) < 0.4 * original
    assert len(left.model.SerializeToString()) > 0.9 * original
    fed = feeds(model)
    for result in (stored, static):
        assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 25


def test_any_of_these_layers_goes_back_to_float() -> None:
    model = recurrent("LSTM", "GRU")
    options = QuantizeOptions(batch_size=20)
    trials = make_trials(model, Arrays(**feeds(model)), options, Steps())
    names = trials.names
    assert len(names) == 3
    for name in names:
        result = trials.result([name])
        (left,) = result.details["layers_float"]
        assert left["name"] == name
        assert left["reason"].startswith("returned to float")
        assert result.model == trials.model_with([name])
    assert operators(trials.model_with([n for n in names if "lstm" in n]))["LSTM"] == 1


def test_layers_that_cannot_have_a_form_say_why() -> None:
    net = Net()
    gates = [net.constant(net.weights(1, 4 * HIDDEN, size)) for size in (WIDTH, HIDDEN)]
    states = net.op("LSTM", "x", *gates, hidden_size=HIDDEN, outputs=2)
    states = net.op("LSTM", "x", "fed", gates[1], hidden_size=HIDDEN, outputs=2)
    states = net.op("Squeeze", states, net.constant(np.array([1])))
    last = net.op("MatMul", states, net.constant(net.weights(HIDDEN, 5)))
    model = net.model({"x": ["t", "n", WIDTH], "fed": [1, 4 * HIDDEN, WIDTH]}, [last])
    samples = {**feeds(model), "fed": np.zeros((1, 4 * HIDDEN, WIDTH), np.float32)}
    result = quantize(model, Arrays(**samples), QuantizeOptions(batch_size=20), Steps())
    (left,) = result.details["layers_float"]
    assert left["reason"] == "its weights are not constant"


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "dynamic", "recurrent": "weights"},
        {"mode": "weights", "conv3d": "static"},
        {"scheme": "tensorrt", "range": "full", "recurrent": "dynamic"},
        {"scheme": "tensorrt", "range": "full", "conv3d": "weights"},
        {"recurrent": "static"},
    ],
)
def test_forms_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as refusal:
        QuantizeOptions(**options)
    assert refusal.value.code == "quantize-option"
    assert refusal.value.hint


def embeddings(rows: int = 512) -> onnx.ModelProto:
    """Token embeddings with a few large rows, and a product of each."""
    net = Net()
    table = net.weights(rows, 16)
    table[::7] *= 20
    ids = net.op("Cast", "x", to=onnx.TensorProto.INT64)
    inner = net.op("Gather", net.constant(table), ids)
    weights = net.constant(net.weights(16, 4))
    return net.model({"x": ["n", 5]}, [net.op("MatMul", inner, weights)])


def test_an_embedding_table_is_int8_beside_static_layers_unless_excluded() -> None:
    model = embeddings()
    ids = {"x": np.random.default_rng(0).integers(0, 512, (20, 5)).astype(np.float32)}
    options = QuantizeOptions(batch_size=20)
    result = quantize(model, Arrays(**ids), options, Steps())
    onnx.checker.check_model(result.model, full_check=True)
    # 512 rows of 16 take 32,768 bytes in float32 and 8,192 in int8, beside a scale for each row.
    assert model.ByteSize() > 32_768
    assert result.model.ByteSize() < 13_000
    assert [layer["operator"] for layer in result.details["layers_weights"]] == ["Gather"]
    assert snr_db(run(model, ids)[0], run(result.model, ids)[0]) > 30
    name = next(node.name for node in model.graph.node if node.op_type == "Gather")
    excluded = QuantizeOptions(batch_size=20, exclude=(name,))
    kept = quantize(model, Arrays(**ids), excluded, Steps())
    assert kept.model.ByteSize() > 32_768
