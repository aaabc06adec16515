"""Multiply-accumulates of one call: the arithmetic cost of a network on any device.

The count covers convolutions, matrix products (attention included) and recurrent layers, in float
and quantized graphs alike. Zero weights count. Elementwise work, such as biases and activations,
does not.

A convolution takes one product per output element, input channel of its group and kernel position;
a matrix product takes one per element of the result and of the summed axis
(Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", 2017,
appendix A.1, without biases). An LSTM or GRU multiplies its input and its state by all their
weights in every step (ONNX operators LSTM and GRU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.graph.run import Runner
from edgepack.onnx_tools.attributes import attribute
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.operators import Products, operator
from edgepack.onnx_tools.walk import walk_graphs
from edgepack.onnx_tools.writer import serialised

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Shape = tuple[int, ...]
# Counts the products of a node, from the shapes of its inputs and outputs by name.
Count = Callable[["NodeProto", Callable[[str], Shape]], int]


def macs(model: ModelProto, example: Mapping[str, np.ndarray]) -> int | None:
    """Count the multiply-accumulates of one call at the example's shapes.

    Args:
        model: an `onnx.ModelProto`, float or quantized.
        example: one feed, arrays by input name; the graph is run on it to measure every shape.

    Returns None if the graph does not determine the count: products inside If, Loop and Scan run
    an unknown number of times, and some operators contain whole attention layers.

    Raises:
        GraphError: if the graph does not run on the example.
    """
    products = count_by_node(model, example)
    if products is None:
        return None
    return sum(products.values())


def count_by_node(model: ModelProto, example: Mapping[str, np.ndarray]) -> dict[str, int] | None:
    """Count the multiply-accumulates of each node that has any, by its name; see `macs`."""
    counted: list[NodeProto] = []
    main = model.graph
    for graph in walk_graphs(main):
        for node in graph.node:
            rule = operator(node.op_type).products
            if rule is None:
                continue
            if rule == "hidden" or graph is not main:
                return None
            counted.append(node)
    shapes = _shapes(model, counted, example)
    products: dict[str, int] = {}
    for node in counted:
        rule = operator(node.op_type).products
        if rule is not None and rule != "hidden":
            # Nodes without a name share one entry.
            count = _COUNTS[rule](node, shapes.__getitem__)
            products[node.name] = products.get(node.name, 0) + count
    return products


def _shapes(
    model: ModelProto, nodes: list[NodeProto], example: Mapping[str, np.ndarray]
) -> Mapping[str, Shape]:
    """Return the shapes of all inputs and outputs of some nodes, by tensor name."""
    from onnx import ValueInfoProto, helper

    # An omitted optional input has the empty name.
    shapes: dict[str, Shape] = {"": ()}
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    for name, array in example.items():
        shapes[name] = array.shape
    missing: list[str] = []
    for node in nodes:
        for name in (*node.input, *node.output):
            if name not in shapes:
                missing.append(name)
                shapes[name] = ()  # until the graph was run
    if missing:
        # Only the shapes are outputs, so that no inner tensor must be kept in memory: an activation
        # of (1, 64, 112, 112) comes out as four integers.
        probe = copied(model)
        del probe.graph.output[:]
        for index, name in enumerate(missing):
            output = f"edgepack_shape_{index}"
            probe.graph.node.append(helper.make_node("Shape", [name], [output]))
            probe.graph.output.append(ValueInfoProto(name=output))
        outputs = Runner(serialised(probe), optimize=False).run(example)
        for name, sizes in zip(missing, outputs, strict=True):
            shapes[name] = tuple(map(int, sizes))
    return shapes


def _convolution(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count a convolution: every output element sums over all weight axes but the first.

    The weights have the shape (outputs, inputs / groups, *kernel). For example 64 filters of
    (64, 3, 7, 7) with an output of (1, 64, 112, 112) take 802816 x 147 = 118 million products.
    """
    weights = node.input[operator(node.op_type).weights[0]]
    return prod(of(node.output[0])) * prod(of(weights)[1:])


def _transposed(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count a transposed convolution with weights of (inputs, outputs / groups, *kernel)."""
    # Every input element contributes to as many sums as one input channel has weights.
    return prod(of(node.input[0])) * prod(of(node.input[1])[1:])


def _product(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count a matrix product: (..., rows, K) by (..., K, columns)."""
    # For example (8, 128) by (128, 10) takes 80 x 128 = 10,240 products.
    # Gemm with transA reads (K, rows), all other products (..., rows, K).
    summed = -2 if attribute(node, "transA", 0) else -1
    return prod(of(node.output[0])) * of(node.input[0])[summed]


def _of_bits(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count (..., rows, K) by weights packed in blocks, with N columns."""
    return prod(of(node.input[0])) * int(attribute(node, "N"))


def _recurrent(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count a recurrent layer: X (steps, batch, inputs) uses all of W and R in every step."""
    # W and R hold the weights of both directions, so a bidirectional layer counts twice.
    steps = prod(of(node.input[0])[:2])
    return steps * (prod(of(node.input[1])) + prod(of(node.input[2])))


def _einsum(node: NodeProto, of: Callable[[str], Shape]) -> int:
    """Count an Einsum: every combination of indices, once for every product of two operands.

    For example "ij,jk->ik" on (2, 3) and (3, 4) takes 2 x 3 x 4 = 24 products. "..." matches the
    axes that have no letter.
    """
    equation = attribute(node, "equation").decode().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        before, dots, after = term.partition("...")
        shape = of(name)
        rank = len(shape) - len(before) - len(after) if dots else 0
        # Axes under the dots broadcast from the last one: "...ij" with four axes is 1, 0, i, j.
        dotted = [f"...{index}" for index in reversed(range(rank))]
        for letter, size in zip([*before, *dotted, *after], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values()) * (len(terms) - 1)


_COUNTS: dict[Products, Count] = {
    "convolution": _convolution,
    "transposed": _transposed,
    "matrix": _product,
    "packed": _of_bits,
    "recurrent": _recurrent,
    "einsum": _einsum,
}
