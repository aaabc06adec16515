"""Where the pairs stand for TensorRT: each rule on a small graph, and where it keeps still."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.layers import FLOAT_LAYERS
from edgepack.passes.quantize.prepare import prepare
from edgepack.passes.quantize.static import placement_tensorrt
from edgepack.passes.quantize.static.placement import Placement
from support.quantize_nets import Net

IMAGE: dict[str, Sequence[int | str]] = {"x": ["n", 3, 16, 16]}


def placed(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> Placement:
    return placement_tensorrt.place(GraphView(prepare(model)), exclude)


def reads(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """(operator, tensor) of everything that is read behind a pair."""
    view = GraphView(prepare(model))
    found = placement_tensorrt.place(view, exclude).reads
    return {(view.nodes[index].op_type, name) for index, name in found}


def of(found: set[tuple[str, str]], kind: str) -> set[str]:
    return {name for operator, name in found if operator == kind}


# weighted_inputs


def test_every_weighted_operator_reads_its_activation_quantized() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    flat = net.op("Flatten", net.op("MaxPool", x, kernel_shape=[16, 16]))
    mixed = net.op("MatMul", flat, net.constant(net.weights(8, 8)))
    model = net.model(IMAGE, [net.gemm(mixed, 8, 4)])
    assert reads(model) == {("Conv", "x"), ("MatMul", flat), ("Gemm", mixed)}


def test_nothing_stands_between_a_convolution_and_its_activation() -> None:
    net = Net()
    low, high = net.constant(np.float32(0)), net.constant(np.float32(6))
    first = net.conv("x", 3, 8)
    x = net.op("Clip", first, low, high)
    second = net.conv(x, 8, 8)
    y = net.op("Mul", second, net.op("Sigmoid", second))
    model = net.model(IMAGE, [net.conv(y, 8, 4)])
    # What the activation made is rounded, for the next one; the sums are not.
    assert reads(model) == {("Conv", "x"), ("Conv", x), ("Conv", y)}


def test_the_output_of_a_weighted_operator_stays_float_for_float_readers() -> None:
    net = Net()
    x = net.conv("x", 3, 8)
    y = net.op("Softmax", x, axis=1)
    model = net.model(IMAGE, [y, net.conv(x, 8, 4)])
    assert reads(model) == {("Conv", "x"), ("Conv", x)}


def test_outputs_of_the_network_are_rounded_for_its_layers_alone() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    found = placed(net.model(IMAGE, [x, net.conv(x, 8, 4)]))
    assert x in found.points
    assert not found.rounded
    assert not found.clamps


def test_excluded_layers_read_float() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    last = net.conv(x, 8, 4)
    model = net.model(IMAGE, [last])
    (name,) = (node.name for node in model.graph.node if node.output[0] == last)
    assert reads(model, (name,)) == {("Conv", "x")}
    assert placed(model, (name,)).float_layers == ((name, "Conv", "excluded by name"),)


def test_what_tensorrt_has_no_integers_for_stays_float_with_the_reason() -> None:
    net = Net()
    x = net.op("ConvTranspose", "x", net.constant(net.weights(3, 8, 2, 2)), strides=[2, 2])
    product = net.op("MatMul", x, x)
    found = placed(net.model({"x": [1, 3, 16, 16]}, [net.conv(product, 8, 4)]))
    assert [layer.op for layer in found.layers] == ["Conv"]
    reasons = {kind: reason for _, kind, reason in found.float_layers}
    assert "transposed" in reasons["ConvTranspose"]
    assert "both operands are activations" in reasons["MatMul"]


def test_every_float_layer_has_a_reason_of_tensorrts() -> None:
    assert placement_tensorrt.FLOAT_IN_TENSORRT.keys() == FLOAT_LAYERS.keys()
    own = {name for name, reason in FLOAT_LAYERS.items() if "onnxruntime has no" in reason}
    assert not {name for name in own if "onnxruntime" in placement_tensorrt.FLOAT_IN_TENSORRT[name]}


# skip_branches


def block(net: Net, x: str, channels: int) -> str:
    return net.conv(net.op("Relu", net.conv(x, channels, channels)), channels, channels)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_a_residual_addition_the_skip_branch_alone_is_quantized(swapped: bool) -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    inner = block(net, x, 8)
    total = net.op("Add", *((inner, x) if swapped else (x, inner)))
    model = net.model(IMAGE, [net.conv(net.op("Relu", total), 8, 4)])
    # Not the side of the convolution: the pair would cut its kernel before the addition.
    assert of(reads(model), "Add") == {x}


def test_of_a_projected_skip_branch_the_projection_is_quantized() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    inner = block(net, x, 8)
    projected = net.conv(x, 8, 8, 1)
    total = net.op("Add", inner, projected)
    model = net.model(IMAGE, [net.conv(net.op("Relu", total), 8, 4)])
    # The larger convolution keeps the addition.
    assert of(reads(model), "Add") == {projected}


def test_a_chain_of_residual_blocks_is_quantized_throughout() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    skips = []
    for _ in range(3):
        skips.append(x)
        x = net.op("Add", x, block(net, x, 8))
    model = net.model(IMAGE, [net.conv(x, 8, 4)])
    assert of(reads(model), "Add") == set(skips)


def test_a_sum_that_is_read_as_float_needs_no_quantized_skip_branch() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    total = net.op("Add", x, block(net, x, 8))
    assert not of(reads(net.model(IMAGE, [net.op("Softmax", total, axis=1)])), "Add")


def test_an_addition_that_no_layer_feeds_stays_float() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    total = net.op("Add", net.op("Softmax", x, axis=1), net.op("Tanh", x))
    assert not of(reads(net.model(IMAGE, [net.conv(total, 8, 4)])), "Add")


def test_a_layer_that_others_read_too_does_not_take_the_addition_into_its_kernel() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    inner = block(net, x, 8)
    total = net.op("Add", x, inner)
    last = net.conv(total, 8, 4)
    assert not of(reads(net.model(IMAGE, [last, net.op("Softmax", inner, axis=1)])), "Add")


def test_biases_and_constants_are_no_skip_branches() -> None:
    net = Net()
    product = net.op("MatMul", "x", net.constant(net.weights(8, 8)))
    biased = net.op("Add", product, net.constant(net.weights(8, 4)[:, 0]))
    shifted = net.op("Add", net.gemm(biased, 8, 8), net.constant(np.ones((1, 8), np.float32)))
    model = net.model({"x": ["n", 8]}, [net.gemm(shifted, 8, 4)])
    assert not of(reads(model), "Add")
    assert placed(model).layers[0].added is not None


def test_the_residual_of_a_transformer_reads_float_before_its_norm() -> None:
    net = Net()
    product = net.op("MatMul", "x", net.constant(net.weights(8, 8)))
    biased = net.op("Add", product, net.constant(net.weights(8, 4)[:, 0]))
    ones, zeros = (net.constant(np.full(8, v, np.float32)) for v in (1, 0))
    normed = net.op("LayerNormalization", net.op("Add", "x", biased), ones, zeros)
    model = net.model(
        {"x": ["n", "t", 8]}, [net.op("MatMul", normed, net.constant(np.eye(8, dtype=np.float32)))]
    )
    assert reads(model) == {("MatMul", "x"), ("MatMul", normed)}


# pools_between


@pytest.mark.parametrize("kind", ["AveragePool", "GlobalAveragePool"])
def test_an_average_between_integer_layers_reads_integers(kind: str) -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    window = {"kernel_shape": [16, 16]} if kind == "AveragePool" else {}
    flat = net.op("Flatten", net.op(kind, x, **window))
    assert of(reads(net.model(IMAGE, [net.gemm(flat, 8, 4)])), kind) == {x}


def test_an_average_behind_a_residual_addition_makes_its_sum_integer() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    total = net.op("Relu", net.op("Add", x, block(net, x, 8)))
    flat = net.op("Flatten", net.op("GlobalAveragePool", total))
    found = reads(net.model(IMAGE, [net.gemm(flat, 8, 4)]))
    assert of(found, "GlobalAveragePool") == {total}
    assert of(found, "Add") == {x}


def test_a_maximum_needs_no_pair_of_its_own() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    assert reads(net.model(IMAGE, [net.conv(pooled, 8, 4)])) == {("Conv", "x"), ("Conv", pooled)}


def test_squeeze_and_excitation_reads_the_float_that_its_gate_needs_too() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    pooled = net.op("GlobalAveragePool", x)
    gate = net.op("Sigmoid", net.conv(pooled, 8, 8, 1))
    gated = net.op("Mul", x, gate)
    found = reads(net.model(IMAGE, [net.conv(gated, 8, 4)]))
    assert found == {("Conv", "x"), ("Conv", pooled), ("Conv", gated)}


@pytest.mark.parametrize("why", ["input", "output", "excluded"])
def test_an_average_at_an_end_of_the_network_reads_float(why: str) -> None:
    net = Net()
    x = "x" if why == "input" else net.op("Relu", net.conv("x", 3, 8))
    pooled = net.op("GlobalAveragePool", x)
    last = net.conv(pooled, 3 if why == "input" else 8, 4, 1)
    model = net.model(IMAGE, [pooled if why == "output" else last])
    (name,) = (node.name for node in model.graph.node if node.op_type == "GlobalAveragePool")
    assert not of(reads(model, (name,) if why == "excluded" else ()), "GlobalAveragePool")
