"""The mode "weights": the file's bytes, what onnxruntime makes of it, and the numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.ledger import PassResult
from edgepack.onnx_tools.fusion import fuse
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.weights.int4 import quantize_blocks
from support.quantize_nets import Arrays, Net, Steps, images, residual, run, snr_db


def quantized(model: onnx.ModelProto, samples: Any = None, **options: Any) -> PassResult[Any]:
    result = quantize(model, samples, QuantizeOptions(mode="weights", **options), Steps())
    onnx.checker.check_model(result.model, full_check=True)
    return result


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def replaced(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The float model with other constants."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return made


def in_eight_bits(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Rounded to 127.5 steps on either side of zero, a scale for each place of the kept axes."""
    axes = tuple(axis for axis in range(values.ndim) if axis not in kept)
    scale = (np.abs(values).max(axis=axes, keepdims=True) / np.float32(127.5)).astype(np.float32)
    return (np.clip(np.rint(values.astype(float) / scale), -128, 127) * scale).astype(np.float32)


def mixed() -> onnx.ModelProto:
    """Every layer with weights: convolutions, LSTM, GRU, RNN, MatMul, Gemm."""
    net, hidden = Net(), 8
    up = net.constant(net.weights(4, 3, 2, 2), "up")
    down = net.constant(net.weights(4, 3, 3, 3), "down")
    x = net.op("Relu", net.op("Conv", "x", down, pads=[1] * 4))
    x = net.op("ConvTranspose", x, up, strides=[2, 2], group=2)
    x = net.op("Reshape", x, net.constant(np.array([96, 2, 32])))
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        names = [
            net.constant(net.weights(gates * hidden, size)[None], f"{kind}_{which}")
            for which, size in (("w", 32 if kind == "LSTM" else hidden), ("r", hidden))
        ]
        x = net.op(kind, x, *names, hidden_size=hidden)
        x = net.op("Squeeze", x, net.constant(np.array([1])))
    x = net.op("MatMul", x, net.constant(net.weights(hidden, 16), "product"))
    return net.model({"x": [1, 3, 16, 16]}, [x])


def test_eight_bits_are_exactly_the_rounded_weights() -> None:
    model = mixed()
    result = quantized(model)
    kept = {"down": (0,), "up": (1,), "product": (1,)}
    kept |= {f"{kind}_{which}": (0, 1) for kind in ("LSTM", "GRU", "RNN") for which in "wr"}
    real = constants(model)
    values = {name: in_eight_bits(real[name], axes) for name, axes in kept.items()}
    rounded = replaced(model, values)
    fed = {"x": images(1)}
    found = run(result.model, fed)[0]
    assert found == pytest.approx(run(rounded, fed)[0], abs=1e-6)
    assert np.abs(found - run(model, fed)[0]).max() > 1e-4
    assert result.details["layers_quantized"] == 6
    assert result.details["layers_float"] == []
    stored = constants(result.model)
    assert all(stored[f"{name}_quantized"].dtype == np.int8 for name in kept)
    assert not set(kept) & set(stored)


def test_eight_bits_are_float_again_once_the_model_is_loaded() -> None:
    net = Net()
    model = net.model({"x": ["n", 64]}, [net.gemm(net.op("Relu", net.gemm("x", 64, 256)), 256, 64)])
    result = quantized(model)
    assert result.model.ByteSize() < 0.28 * model.ByteSize()
    # No cast is left to run, no product of integers, nothing that would round activations.
    kinds = Counter(node.op_type for node in fuse(result.model).graph.node)
    assert kinds == {"Gemm": 1, "FusedGemm": 1}
    assert result.details["kernels"] == {}
    assert not result.details["integer_only"]
    assert any("neither time nor memory" in note for note in result.notes)


def test_no_samples_are_needed() -> None:
    assert QuantizeOptions(mode="weights").needs == ()
    assert QuantizeOptions(mode="weights", bits=4, rounding="gptq").needs == ("calibration",)


def unpacked(stored: np.ndarray) -> np.ndarray:
    """Four-bit integers out of bytes, the lower half first."""
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1)


# A width that is a multiple of the block, one that is not, an odd number of blocks.
@pytest.mark.parametrize(("width", "block"), [(128, 32), (100, 32), (96, 32), (256, 128), (80, 16)])
def test_four_bits_are_what_the_operator_says(width: int, block: int) -> None:
    net, outputs = Net(), 12
    product = net.constant(net.weights(width, outputs), "product")
    gemm = net.constant(net.weights(outputs, width), "gemm")
    bias = net.constant(net.weights(outputs, 4)[:, 0], "bias")
    made = [
        net.op("MatMul", "x", product),
        net.op("Gemm", "z", gemm, bias, transB=1, alpha=0.5, beta=2.0),
    ]
    model = net.model({"x": ["n", "t", width], "z": ["n", width]}, made)
    result = quantized(model, bits=4, block=block)
    assert result.details["kernels"] == {"MatMulNBits": 2}
    nodes = [node for node in result.model.graph.node if node.op_type == "MatMulNBits"]
    stored, real = constants(result.model), constants(model)
    random = np.random.default_rng(2)
    fed = {"x": random.standard_normal((2, 3, width)).astype(np.float32)}
    fed["z"] = random.standard_normal((5, width)).astype(np.float32)
    found = run(result.model, fed)
    wanted = (real["product"].T, 0.5 * real["gemm"])
    for place, (node, rows) in enumerate(zip(nodes, wanted, strict=True)):
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        count = -(-width // block)
        assert settings == {
            "K": width, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": 1,
        }  # fmt: skip
        integers, scale, zeros = (stored[name] for name in node.input[1:4])
        scale = scale.reshape(outputs, count, 1)
        zeros = unpacked(zeros.reshape(outputs, -1))[:, :count, None].astype(int)
        weights = ((unpacked(integers).astype(int) - zeros) * scale).reshape(outputs, -1)[:, :width]
        # Within half a step of the real ones, but for the few that the finer scale clips.
        steps = np.repeat(scale, block, 2).reshape(outputs, -1)[:, :width]
        near = np.abs(weights - rows) <= 0.51 * steps
        assert near.mean() > 0.95
        made_here = fed["xz"[place]] @ weights.T + (2.0 * real["bias"] if place else 0.0)
        assert found[place] == pytest.approx(made_here, abs=1e-4)


def test_four_bits_search_for_the_scale_that_loses_least() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 256))
    found = quantize_blocks(rows, 128, None)
    blocks = rows.reshape(64, 2, 128)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    scale = ((high - low) / 15)[..., None]
    zero = np.rint(-low[..., None] / scale)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    assert snr_db(rows, found.rows(256)) > snr_db(rows, plain.reshape(64, 256)) + 0.3
    assert found.integers.min() >= 0
    assert found.integers.max() <= 15


def test_blocks_of_zeros_and_of_one_sign() -> None:
    rows = np.zeros((3, 64))
    rows[1] = np.linspace(2, 3, 64)
    rows[2, :32] = -1e-30
    found = quantize_blocks(rows, 32, None).rows(64)
    assert (found[0] == 0).all()
    assert found[1] == pytest.approx(rows[1], abs=0.11)
    assert np.abs(found[2]).max() < 1e-20


def test_the_file_of_four_bits_is_an_eighth_and_a_little() -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", "x", net.constant(net.weights(256, 512))))
    model = net.model({"x": ["n", 256]}, [net.op("MatMul", x, net.constant(net.weights(512, 256)))])
    whole = model.ByteSize()
    # Half a byte for each weight, and four and a half for each block.
    for block, share in ((16, 0.196), (32, 0.161), (64, 0.143), (128, 0.135), (256, 0.130)):
        result = quantized(model, bits=4, block=block)
        assert result.model.ByteSize() == pytest.approx(share * whole, rel=0.03)


def test_layers_that_four_bits_do_not_suit_have_eight() -> None:
    model = residual()
    net = Net()
    narrow = net.model({"x": ["n", 8]}, [net.gemm(net.gemm("x", 8, 96), 96, 4)])
    # Eight columns in a block of 32 would take more than eight bytes.
    found = quantized(narrow, bits=4)
    assert found.details["layers_in_blocks"] == 1
    assert found.details["layers_quantized"] == 2
    result = quantized(model, bits=4)
    assert result.details["layers_in_blocks"] == 0
    assert result.details["layers_quantized"] == 6
    fed = {"x": images(8)}
    assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 30


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_rounds_for_what_the_layers_read(bits: int) -> None:
    net = Net()
    x = net.op("Relu", net.gemm("x", 64, 96))
    model = net.model({"x": ["n", 64]}, [net.gemm(x, 96, 8)])
    random = np.random.default_rng(2)
    mix = random.standard_normal((12, 64)).astype(np.float32)
    samples = random.standard_normal((400, 12)).astype(np.float32) @ mix + np.float32(0.5)
    fed = {"x": samples[:100]}
    real = run(model, fed)[0]
    nearest = quantized(model, bits=bits)
    progress = Steps()
    options = QuantizeOptions(mode="weights", bits=bits, rounding="gptq")
    gptq = quantize(model, Arrays(x=samples[100:]), options, progress)
    assert progress.done == progress.total == 400
    errors = [snr_db(real, run(each.model, fed)[0]) for each in (nearest, gptq)]
    assert errors[1] > errors[0] + 4
    assert gptq.details["calibration_samples"] == 300


def test_a_convolution_is_rounded_for_what_it_reads() -> None:
    model, fed = residual(), {"x": images(20, seed=9)}
    nearest = quantized(model)
    gptq = quantized(model, Arrays(x=images(60)), rounding="gptq")
    real = run(model, fed)[0]
    errors = [snr_db(real, run(each.model, fed)[0]) for each in (nearest, gptq)]
    assert errors[1] > errors[0] + 2
    assert gptq.details["range"] is None


def test_products_of_activations_are_no_layers_here_and_excluded_ones_are() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(64, 64)))
    x = net.op("MatMul", x, net.op("Transpose", x, perm=[1, 0]))
    model = net.model({"x": [64, 64]}, [net.op("MatMul", x, net.constant(net.weights(64, 8)))])
    name = model.graph.node[-1].name
    result = quantized(model, exclude=(name,))
    assert result.details["layers_float"] == [
        {"name": name, "operator": "MatMul", "reason": "excluded by name"}
    ]
    assert result.details["layers_quantized"] == 1


def test_weights_that_two_layers_share_are_stored_once() -> None:
    net = Net()
    weight = net.constant(net.weights(64, 64), "shared")
    x = net.op("MatMul", net.op("Relu", net.op("MatMul", "x", weight)), weight)
    model = net.model({"x": ["n", 64]}, [x])
    eight, four = (constants(quantized(model, bits=bits).model) for bits in (8, 4))
    assert sorted(eight) == ["shared_quantized", "shared_scale"]
    assert sorted(four) == ["shared_int4", "shared_scale", "shared_zero_point"]


@pytest.mark.parametrize("opset", [13, 21])
def test_older_and_newer_opsets_work(opset: int) -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(64, 16)))
    model = net.model({"x": ["n", 64]}, [x], opset)
    fed = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    for options in ({}, {"bits": 4}):
        found = run(quantized(model, **options).model, fed)[0]
        assert snr_db(run(model, fed)[0], found) > 15


@pytest.mark.parametrize("excluded", [False, True])
def test_a_table_that_a_layer_reads_too_is_stored_once(excluded: bool) -> None:
    net = Net()
    table = net.constant(net.weights(400, 16), "table")
    x = net.op("Gather", table, net.op("Cast", "ids", to=onnx.TensorProto.INT64))
    layer = net.op("Gemm", net.op("Tanh", x), table, transB=1)
    model = net.model({"ids": ["n"]}, [net.op("MatMul", layer, net.constant(net.weights(400, 4)))])
    names = (next(node.name for node in model.graph.node if node.op_type == "Gemm"),)
    result = quantized(model, exclude=names if excluded else ())
    found = [v for v in constants(result.model).values() if v.shape == (400, 16)]
    assert [str(v.dtype) for v in found] == ["float32" if excluded else "int8"]
    assert result.details["tables_quantized"] == (0 if excluded else 1)
    fed = {"ids": np.arange(9, dtype=np.float32)}
    assert snr_db(run(model, fed)[0], run(result.model, fed)[0]) > 35
