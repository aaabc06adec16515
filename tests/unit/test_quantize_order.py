"""Channels in an order of our own: the network computes the same, and fewer pairs give way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.prepare import prepare
from edgepack.passes.quantize.static.placement import place
from edgepack.passes.quantize.weights.channel_order import MOST, order_pairs, reorder
from edgepack.passes.quantize.weights.rounding import find_largest_pairs
from support.quantize_nets import Arrays, Net, Steps, gated, images, residual, run, snr_db, stress


def reordered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    prepared = prepare(model)
    view = GraphView(prepared)
    return reorder(prepared, view, place(view, ()).layers)


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, values: np.ndarray, name: str = "x"
) -> None:
    """Up to the rounding of sums in another order."""
    feed = {name: values.astype(np.float32)}
    for real, found in zip(run(before, feed), run(after, feed), strict=True):
        assert np.abs(real - found).max() <= 1e-5 * np.abs(real).max()


def pair_costs(costs: np.ndarray, order: np.ndarray) -> float:
    even = len(order) // 2 * 2
    return float(sum(costs[order[i], order[i + 1]] for i in range(0, even, 2)))


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 31, 64])
def test_an_order_holds_every_channel_once_and_never_costs_more(channels: int) -> None:
    random = np.random.default_rng(channels)
    for _ in range(10):
        costs = random.exponential(size=(channels, channels))
        costs += costs.T
        order = order_pairs(costs)
        assert sorted(order) == list(range(channels))
        assert pair_costs(costs, order) <= pair_costs(costs, np.arange(channels)) + 1e-9


def test_partners_that_cost_nothing_are_found() -> None:
    """Ten channels that are large with one sign, ten with the other: no two alike meet."""
    sign = np.array([1, -1]).repeat(10)
    costs = (sign[:, None] == sign).astype(float)
    assert pair_costs(costs, order_pairs(costs)) == 0


def test_of_an_odd_number_the_worst_company_stands_alone() -> None:
    costs = np.ones((5, 5))
    costs[2], costs[:, 2] = 100, 100
    assert order_pairs(costs)[-1] == 2


def wide() -> onnx.ModelProto:
    """Twice as many inputs as outputs in the second layer, wider than what is matched at once."""
    net = Net(3)
    x = net.op("Relu", net.gemm("x", 6, MOST + 50))
    return net.model({"x": ["n", 6]}, [net.gemm(x, MOST + 50, 8)])


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


def test_a_wide_layer_need_not_give_way() -> None:
    model, count = reordered(wide())
    assert count == 1
    # The first layer reads the network's input, whose order is given.
    before, after = (
        [layer.rows for layer in place(GraphView(m), ()).layers] for m in (prepare(wide()), model)
    )
    assert np.array_equal(np.sort(before[0], axis=0), np.sort(after[0], axis=0))
    largest = [
        find_largest_pairs(rows / np.abs(rows).max(axis=1, keepdims=True)) for rows in before[1:]
    ]
    now = [find_largest_pairs(rows / np.abs(rows).max(axis=1, keepdims=True)) for rows in after[1:]]
    assert np.mean(largest) > 1.2
    assert np.mean(now) < 1.01


def channelled(make: Callable[[Net, str], str], *, channels: int = 12) -> onnx.ModelProto:
    """A convolution, what is to be tested, a convolution; it gets and gives `channels`."""
    net = Net(2)
    x = make(net, net.conv("x", 3, channels))
    return net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, channels, 5)])


def per_channel(net: Net, x: str) -> str:
    return net.op("Mul", x, net.constant(net.weights(12, 1, 1)))


def excited(net: Net, x: str) -> str:
    squeezed = net.conv(net.op("GlobalAveragePool", x), 12, 4, 1)
    return net.op("Mul", x, net.op("Sigmoid", net.conv(net.op("Relu", squeezed), 4, 12, 1)))


def residual_of(net: Net, x: str) -> str:
    return net.op("Add", x, net.conv(net.op("Relu", x), 12, 12))


def separable(net: Net, x: str) -> str:
    return net.conv(net.op("Clip", net.conv(x, 12, 12, 3, groups=12)), 12, 12, 1)


def twice(net: Net, x: str) -> str:
    """Two convolutions with the same weights, each of its own input."""
    weight = net.constant(net.weights(12, 12, 1, 1))
    return net.op("Conv", net.op("Relu", net.op("Conv", x, weight)), weight)


def halved(net: Net, x: str) -> str:
    """Channels that change their places: their order is not free."""
    first = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    return net.op("Concat", f"{first}_1", first, axis=1)


def chosen(net: Net, x: str) -> str:
    """Channels by their number."""
    return net.op(
        "Gather", x, net.constant(np.array([5, 3, 1, 0, 2, 4, 6, 8, 7, 9, 11, 10])), axis=1
    )


def sloped(net: Net, x: str) -> str:
    return net.op("PRelu", x, net.constant(net.weights(12, 1, 1)))


def grouped(net: Net, x: str) -> str:
    return net.conv(x, 12, 12, 3, groups=3)


def multiplied(net: Net, x: str) -> str:
    """A depthwise convolution that makes two channels of each, and back."""
    weight = net.constant(net.weights(24, 1, 3, 3))
    x = net.op("Conv", x, weight, group=12, pads=[1, 1, 1, 1])
    return net.conv(x, 24, 12, 1)


def normalised(net: Net, x: str) -> str:
    constants = [net.constant(np.abs(net.weights(12)) + 0.5) for _ in range(4)]
    return net.op("BatchNormalization", x, *constants)


@pytest.mark.parametrize(
    ("make", "ordered"),
    [
        (per_channel, 1), (excited, 3), (residual_of, 2), (separable, 2), (twice, 3), (halved, 0),
        (chosen, 0),
        (sloped, 1), (grouped, 0), (multiplied, 1), (normalised, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_the_network_computes_the_same(make: Callable[[Net, str], str], ordered: int) -> None:
    before = channelled(make)
    after, count = reordered(before)
    assert count == ordered
    changed = [
        a.name
        for a, b in zip(prepare(before).graph.initializer, after.graph.initializer, strict=True)
        if a != b
    ]
    assert bool(changed) == (ordered > 0)
    assert_same(before, after, images(6))


@pytest.mark.parametrize("build", [residual, gated, stress])
def test_whole_networks_compute_the_same(build: Callable[[], onnx.ModelProto]) -> None:
    after, count = reordered(build())
    assert count
    assert_same(build(), after, images(6))


def test_a_tensor_that_is_seen_keeps_its_order() -> None:
    """As an output, as what a subgraph takes, as what a map is flattened to."""
    net = Net()
    hidden = net.op("Relu", net.conv("x", 3, 8))
    seen = net.model({"x": ["n", 3, 16, 16]}, [net.conv(hidden, 8, 4), hidden])
    assert reordered(seen)[1] == 0

    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    x = net.op("MaxPool", x, kernel_shape=[8, 8], strides=[8, 8])
    flat = net.model({"x": ["n", 3, 16, 16]}, [net.gemm(net.op("Flatten", x), 32, 4)])
    assert reordered(flat)[1] == 0

    net = Net()
    hidden = net.op("Relu", net.gemm("x", 6, 32))
    branch = helper.make_graph(
        [helper.make_node("Neg", [hidden], ["negated"])],
        "branch",
        [],
        [helper.make_tensor_value_info("negated", TensorProto.FLOAT, None)],
    )
    taken = net.op("If", net.constant(np.array(True)), then_branch=branch, else_branch=branch)
    captured = net.model({"x": ["n", 6]}, [net.gemm(hidden, 32, 4), taken])
    assert reordered(captured)[1] == 0


def test_a_transformer_keeps_its_heads() -> None:
    """Embedding, normalisation and the hidden layer are free; what is cut into heads is not."""
    net = Net(6)
    width, heads = 16, 4
    ids = net.op("Cast", "ids", to=TensorProto.INT64)
    x = net.op("Gather", net.constant(net.weights(50, width)), ids)
    scale, shift = (net.constant(net.weights(width, 4)[:, 0]) for _ in range(2))

    def linear(x: str, cin: int, cout: int) -> str:
        x = net.op("MatMul", x, net.constant(net.weights(cin, cout)))
        return net.op("Add", x, net.constant(net.weights(cout, 4)[:, 0]))

    def split(x: str) -> str:
        shape = net.constant(np.array([0, 0, heads, width // heads]))
        return net.op("Transpose", net.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    q, k, v = (split(linear(x, width, width)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores), v)
    mixed = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = net.op("Reshape", mixed, net.constant(np.array([0, 0, width])))
    x = net.op("Add", x, linear(mixed, width, width))
    x = net.op("LayerNormalization", x, scale, shift)
    x = net.op("Add", x, linear(net.op("Gelu", linear(x, width, 64)), 64, width))
    first = net.op("Gather", x, net.constant(np.array(0)), axis=1)
    model = net.model({"ids": ["n", 9]}, [net.gemm(first, width, 3)], opset=20)
    after, count = reordered(model)
    # q, k, v, both hidden layers and the classifier, but not what reads the heads.
    assert count == 6
    assert_same(model, after, np.random.default_rng(0).integers(0, 50, (4, 9)), "ids")


def test_pair_safe_is_nearly_as_good_as_full_range() -> None:
    """With the order chosen, what the limit costs is a fraction of what it did."""
    x = {"x": normal(400, 6)}
    samples = Arrays(x=normal(200, 6))
    found = {}
    for span in ("full", "pair-safe"):
        result = quantize(wide(), samples, QuantizeOptions(range=span), Steps())
        found[span] = snr_db(run(wide(), x)[0], run(result.model, x)[0])
    assert found["pair-safe"] > found["full"] - 0.5
    assert result.details["pair_safe"]["reordered"] == 1
    assert "input channels of 1 layer reordered" in " ".join(result.notes)
