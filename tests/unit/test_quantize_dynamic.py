"""The mode "dynamic": what onnxruntime fuses, and the numbers by the operators' definitions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.ledger import PassResult
from edgepack.onnx_tools.fusion import fuse
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import Arrays, Net, Steps, images, residual, run, snr_db

WEIGHTS = Path(__file__).parents[2] / "demo" / "silero-vad" / "silero-vad.safetensors"


def quantized(model: onnx.ModelProto, samples: Any = None, **options: Any) -> PassResult[Any]:
    result = quantize(model, samples, QuantizeOptions(mode="dynamic", **options), Steps())
    onnx.checker.check_model(result.model, full_check=True)
    return result


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in fuse(model).graph.node)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """DynamicQuantizeLinear, as ONNX defines it: integers, scale, zero point."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(int), scale, zero_point


def whole(rows: np.ndarray, steps: float) -> tuple[np.ndarray, np.ndarray]:
    """s8 weights by row, all of s8 used: integers and scales."""
    scale = (np.abs(rows).max(axis=1) / np.float32(steps)).astype(np.float32)
    # In float64: the largest weight of a row stands half-way between two steps of 127.5.
    return np.clip(np.rint(rows.astype(float) / scale[:, None]), -128, 127).astype(int), scale


def product(x: np.ndarray, rows: np.ndarray, steps: float) -> np.ndarray:
    """x times rows transposed, both as integers."""
    stored, scale, zero_point = rounded(x)
    weights, scales = whole(rows, steps)
    return (stored - zero_point) @ weights.T * (scale * scales)


def attention(width: int = 16) -> onnx.ModelProto:
    """Three projections of one tensor with biases, and a Gemm of another."""
    net = Net()
    made = []
    for _ in range(3):
        projected = net.op("MatMul", "x", net.constant(net.weights(width, width)))
        made.append(net.op("Add", projected, net.constant(net.weights(width, 4)[:, 0])))
    last = net.gemm("z", width, 5)
    return net.model({"x": ["n", "t", width], "z": ["m", width]}, [*made, last])


def feeds(seed: int = 1, width: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((2, 6, width)).astype(np.float32) + np.float32(0.3),
        "z": random.standard_normal((4, width)).astype(np.float32),
    }


@pytest.mark.parametrize("scheme", ["fbgemm", "qnnpack"])
def test_products_are_what_the_operators_say(scheme: str) -> None:
    model = attention()
    result = quantized(model, scheme=scheme, range="full")
    assert operators(result.model) == {
        "DynamicQuantizeLinear": 1,
        "MatMulIntegerToFloat": 3,
        "DynamicQuantizeMatMul": 1,
    }
    assert result.details["kernels"] == {"DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 3}
    real, fed, steps = constants(model), feeds(), 127.5 if scheme == "fbgemm" else 127.0
    found = run(result.model, fed)
    for place, made in enumerate(found[:3]):
        weight, bias = real[f"constant_{2 * place}"], real[f"constant_{2 * place + 1}"]
        wanted = product(fed["x"], weight.T, steps) + bias
        assert made == pytest.approx(wanted, abs=1e-5)
    wanted = product(fed["z"], real["constant_6"], steps) + real["constant_7"]
    assert found[3] == pytest.approx(wanted, abs=1e-5)
    # And that is near what the float network computes, and not the same.
    errors = [snr_db(a, b) for a, b in zip(run(model, fed), found, strict=True)]
    assert 30 < min(errors) < max(errors) < 60


def test_no_samples_are_needed_and_none_are_read() -> None:
    assert QuantizeOptions(mode="dynamic").needs == ()
    assert QuantizeOptions(mode="dynamic", rounding="gptq").needs == ("calibration",)
    assert QuantizeOptions(mode="dynamic", bias_correction=True).needs == ("calibration",)
    result = quantized(attention())
    assert result.details["calibration_samples"] == 0
    assert not result.details["integer_only"]
    assert result.details["layers_quantized"] == 4
    assert result.details["layers_float"] == []


def test_pairs_of_weights_stay_within_the_limit() -> None:
    net = Net()
    # Nearly all pairs are over the limit at full range.
    weight = net.random.uniform(0.7, 1.0, (33, 24)).astype(np.float32)
    made = net.op("MatMul", "x", net.constant(weight, "w"))
    lstm = [net.constant(net.random.uniform(0.7, 1, s).astype(np.float32), n)
            for n, s in (("W", (1, 32, 24)), ("R", (1, 32, 8)))]  # fmt: skip
    states = net.op("LSTM", made, *lstm, hidden_size=8)
    model = net.model({"x": ["t", "b", 33]}, [states])

    def largest(span: str) -> list[int]:
        found = constants(quantized(model, range=span).model)
        rows = [found["w_quantized"].T, *(found[f"{n}_quantized"][0].T for n in "WR")]
        sums = []
        for each in rows:
            even = each[:, : each.shape[1] // 2 * 2].astype(int)
            sums.append(int(np.abs(even[:, 0::2] + even[:, 1::2]).max()))
        return sums

    assert all(127 < each <= 128 for each in largest("pair-safe"))
    assert all(each > 240 for each in largest("full"))
    assert all(each <= 128 for each in largest("reduced"))
    notes = quantized(model).notes
    assert any(note.startswith("Pair-safe: input channels of 0 layers") for note in notes)


def test_gptq_rounds_for_what_the_layers_read() -> None:
    net = Net()
    x = net.op("Relu", net.gemm("x", 32, 48))
    model = net.model({"x": ["n", 32]}, [net.gemm(x, 48, 8)])
    random = np.random.default_rng(2)
    # Inputs of few directions, as features are.
    mix = random.standard_normal((6, 32)).astype(np.float32)
    samples = random.standard_normal((300, 6)).astype(np.float32) @ mix
    fed = {"x": samples[:100]}
    errors = {}
    for rounding in ("nearest", "gptq"):
        given = Arrays(x=samples[100:]) if rounding == "gptq" else None
        # Weights of half the steps, so that their rounding outweighs that of the activations.
        result = quantized(model, given, rounding=rounding, range="reduced")
        errors[rounding] = snr_db(run(model, fed)[0], run(result.model, fed)[0])
    assert errors["gptq"] > errors["nearest"] + 1.5
    assert result.details["calibration_samples"] == 200
    assert any("calibration samples" in note for note in result.notes)


def test_bias_correction_takes_out_the_mean_error() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(32, 8)))
    x = net.op("Add", x, net.constant(net.weights(8, 4)[:, 0]))
    model = net.model({"x": ["n", 32]}, [x])
    samples = np.random.default_rng(4).uniform(2, 3, (256, 32)).astype(np.float32)
    drift = []
    for correct in (False, True):
        given = Arrays(x=samples) if correct else None
        result = quantized(model, given, bias_correction=correct)
        error = run(result.model, {"x": samples})[0] - run(model, {"x": samples})[0]
        drift.append(np.square(error.mean(axis=0)).sum())
    assert drift[1] < 0.1 * drift[0]


def test_what_stays_float_says_why() -> None:
    net, hidden = Net(), 8
    x = net.op("Relu", net.conv("x", 3, 4))
    x = net.op("Reshape", x, net.constant(np.array([64, 1, 16])))
    gates = [net.constant(net.weights(1, 3 * hidden, size)) for size in (16, hidden)]
    y = net.op("GRU", x, *gates, hidden_size=hidden, outputs=2)
    y = net.op("Reshape", y, net.constant(np.array([64, hidden])))
    y = net.op("MatMul", y, net.op("Transpose", y, perm=[1, 0]))
    model = net.model({"x": [1, 3, 16, 16]}, [net.gemm(y, 64, 3), net.gemm(y, 64, 2)])
    excluded = model.graph.node[-1].name
    result = quantized(model, exclude=(excluded,))
    reasons = {each["operator"]: each["reason"] for each in result.details["layers_float"]}
    assert "slower than its float one" in reasons["Conv"]
    assert "no dynamic int8 GRU" in reasons["GRU"]
    assert "both operands are activations" in reasons["MatMul"]
    assert reasons["Gemm"] == "excluded by name"
    assert result.details["layers_quantized"] == 1
    assert operators(result.model)["Gemm"] == 1
    real, found = (run(each, {"x": images(1)}) for each in (model, result.model))
    assert 25 < snr_db(real[0], found[0]) < 60
    assert np.array_equal(real[1], found[1])


def test_alpha_and_beta_of_a_gemm_are_in_its_integers() -> None:
    net = Net()
    weight, bias = net.constant(net.weights(16, 8)), net.constant(net.weights(8, 4)[:, 0])
    made = net.op("Gemm", "x", weight, bias, alpha=0.5, beta=-2.0)
    model = net.model({"x": ["n", 16]}, [made])
    fed = {"x": feeds()["z"]}
    assert snr_db(run(model, fed)[0], run(quantized(model).model, fed)[0]) > 35


def embedded() -> onnx.ModelProto:
    """Two readers of one table, one of a small table, and one of a table that is a layer's too."""
    net = Net()
    table = net.constant(net.weights(300, 16) * np.logspace(-2, 2, 300, dtype=np.float32)[:, None])
    tied = net.constant(net.weights(400, 16))
    small = net.constant(net.weights(3, 16))
    ids = net.op("Cast", "ids", to=onnx.TensorProto.INT64)
    rows = [net.op("Gather", name, ids) for name in (table, table, small, tied)]
    x = net.op("Add", net.op("Add", rows[0], rows[1]), net.op("Add", rows[2], rows[3]))
    logits = net.op("MatMul", x, net.op("Transpose", tied, perm=[1, 0]))
    return net.model({"ids": ["n"]}, [rows[0], logits])


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_embeddings_become_integers_a_scale_to_a_row(mode: str) -> None:
    model = embedded()
    result = quantize(model, None, QuantizeOptions(mode=mode), Steps())
    assert result.details["tables_quantized"] == 2
    fed = {"ids": np.float32([2, 0, 1])}
    table = constants(model)["constant_0"]
    stored, scale = whole(table, 127.5)
    assert run(result.model, fed)[0] == pytest.approx((stored * scale[:, None])[[2, 0, 1]])
    # The table is stored once, and no float one beside it; tied and small ones stay.
    found = constants(result.model)
    assert Counter(str(v.dtype) for v in found.values() if v.shape[:1] == (300,)) == {
        "int8": 1,
        "float32": 1,
    }
    assert {"constant_1", "constant_2"} <= set(found)
    tables = tuple(n.name for n in model.graph.node if n.op_type == "Gather")[:2]
    options = QuantizeOptions(mode=mode, exclude=tables[:1])
    assert quantize(model, None, options, Steps()).details["tables_quantized"] == 1


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(x: np.ndarray, weight: np.ndarray, recurrence: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(steps, batch, hidden) of one direction, every product between integers; gates i, o, f, c."""
    hidden = recurrence.shape[1]
    inputs = product(x, weight, 127.5) + bias[: 4 * hidden] + bias[4 * hidden :]
    state = cell = np.zeros((x.shape[1], hidden), np.float32)
    made = []
    for step in inputs:
        # The state starts as zeros, of which nothing is to be quantized.
        recurrent = product(state, recurrence, 127.5) if made else 0.0
        i, o, f, c = np.split(step + recurrent, 4, axis=1)
        cell = (sigmoid(f) * cell + sigmoid(i) * np.tanh(c)).astype(np.float32)
        state = (sigmoid(o) * np.tanh(cell)).astype(np.float32)
        made.append(state)
    return np.stack(made)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_an_lstm_is_what_its_definition_says(direction: str) -> None:
    net, hidden, inputs = Net(), 12, 20
    ways = 2 if direction == "bidirectional" else 1
    weight, recurrence = (net.weights(ways, 4 * hidden, n) for n in (inputs, hidden))
    bias = net.weights(ways, 8 * hidden)
    names = [net.constant(value) for value in (weight, recurrence, bias)]
    y = net.op("LSTM", "x", *names, hidden_size=hidden, direction=direction, outputs=3)
    model = net.model({"x": ["t", "b", inputs]}, [y, f"{y}_1", f"{y}_2"], opset=14)
    result = quantized(model, range="full")
    assert operators(result.model) == {"DynamicQuantizeLSTM": 1}
    x = np.random.default_rng(3).standard_normal((7, 3, inputs)).astype(np.float32)
    found = run(result.model, {"x": x})
    ahead = lstm(x, weight[0], recurrence[0], bias[0])
    assert found[0][:, 0] == pytest.approx(ahead, abs=2e-4)
    assert found[1][0] == pytest.approx(ahead[-1], abs=2e-4)
    if ways == 2:
        back = lstm(x[::-1], weight[1], recurrence[1], bias[1])[::-1]
        assert found[0][:, 1] == pytest.approx(back, abs=2e-4)
    # Not because rounding is nothing: the float LSTM differs by more.
    assert np.abs(run(model, {"x": x})[0] - found[0]).max() > 1e-3


def test_an_lstm_keeps_its_other_inputs() -> None:
    net, hidden = Net(), 8
    names = [net.constant(net.weights(1, 4 * hidden, size)) for size in (16, hidden)]
    states = [net.constant(net.weights(1, 2, hidden)) for _ in range(2)]
    peephole = net.constant(net.weights(1, 3 * hidden))
    lengths = net.op("Cast", "lengths", to=onnx.TensorProto.INT32)
    y = net.op(
        "LSTM", "x", *names, "", lengths, *states, peephole, hidden_size=hidden, layout=0,
        outputs=3,
    )  # fmt: skip
    model = net.model({"x": ["t", 2, 16], "lengths": [2]}, [y, f"{y}_1"], opset=14)
    x = np.random.default_rng(3).standard_normal((5, 2, 16)).astype(np.float32)
    fed = {"x": x, "lengths": np.float32([5, 2])}
    pairs = zip(run(model, fed), run(quantized(model).model, fed), strict=True)
    assert min(snr_db(real, found) for real, found in pairs) > 25


@pytest.mark.skipif(not WEIGHTS.exists(), reason="python examples/silero_vad.py prepare")
def test_the_cell_of_a_trained_detector_keeps_its_answers() -> None:
    from safetensors.numpy import load_file

    real = load_file(WEIGHTS)
    net, hidden = Net(), 128

    def gates(value: np.ndarray) -> np.ndarray:
        # torch orders them i, f, c, o.
        i, f, c, o = np.split(value, 4)
        return np.concatenate([i, o, f, c])[None]

    names = [net.constant(gates(real[f"lstm_cell.weight_{which}h"])) for which in "ih"]
    biases = [gates(real[f"lstm_cell.bias_{which}h"]) for which in "ih"]
    y = net.op("LSTM", "x", *names, net.constant(np.concatenate(biases, 1)), hidden_size=hidden)
    model = net.model({"x": ["t", "b", 128]}, [y])
    x = np.maximum(np.random.default_rng(3).standard_normal((40, 4, 128)), 0).astype(np.float32)
    result = quantized(model)
    assert snr_db(run(model, {"x": x})[0], run(result.model, {"x": x})[0]) > 25
    assert result.model.ByteSize() < 0.3 * model.ByteSize()


def test_shared_weights_are_stored_once() -> None:
    net = Net()
    weight = net.constant(net.weights(16, 16), "shared")
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.op("Gemm", x, weight, transB=1))
    model = net.model({"x": ["n", 16]}, [x])
    result = quantized(model)
    found = constants(result.model)
    assert sorted(found) == ["shared_quantized", "shared_scale"]
    assert found["shared_quantized"].shape == (16, 16)
    fed = {"x": feeds()["z"]}
    assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 25


def test_names_that_the_graph_has_taken_are_left_alone() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(16, 16), "w"))
    for name in ("x_quantized", "x_scale", f"{x}_sums", "w_quantized"):
        x = net.op("Add", x, net.constant(np.full(16, 0.5, np.float32), name))
    model = net.model({"x": ["n", 16]}, [x])
    fed = {"x": feeds()["z"]}
    result = quantized(model)
    assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 30
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == len(names)


def test_the_same_input_gives_the_same_bytes_and_leaves_the_model() -> None:
    model = residual()
    before = model.SerializeToString()
    first, second = (quantized(model).model.SerializeToString() for _ in range(2))
    assert first == second
    assert model.SerializeToString() == before


def test_zeros_give_the_bias_and_a_fault_is_not_hidden() -> None:
    net = Net()
    bias = net.constant(net.weights(8, 4)[:, 0], "bias")
    made = net.op("Add", net.op("MatMul", "x", net.constant(net.weights(16, 8))), bias)
    model = quantized(net.model({"x": ["n", 16]}, [made])).model
    zeros = np.zeros((2, 16), np.float32)
    assert run(model, {"x": zeros})[0] == pytest.approx(np.stack([constants(model)["bias"]] * 2))
    assert np.isnan(run(model, {"x": zeros + np.float32(np.nan)})[0]).all()
    assert run(model, {"x": zeros[:0]})[0].shape == (0, 8)
