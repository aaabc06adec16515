"""Multiply-accumulates of one call: what the arithmetic of a network costs on any device.

Counted are the products that are summed: convolutions, matrix products (those of attention among
them), recurrent layers; of float graphs and of quantized ones alike. Weights that are zero count.
What is computed element by element, biases and activations among it, does not.

A convolution takes one product for every output element, input channel of its group and place of
its kernel; a matrix product one for every element of the result and of the axis that is summed
(Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", 2017,
appendix A.1, without its biases). An LSTM or GRU multiplies its input and its state with all their
weights in every step (ONNX operators LSTM and GRU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from edgepack.graph.proto import copied, walk_graphs, walk_nodes
from edgepack.graph.run import Runner

Shape = tuple[int, ...]
# How a node's products follow from the shapes of what it reads and makes.
Count = Callable[[Any, Callable[[str], Shape]], int]


def macs(model: Any, example: Mapping[str, np.ndarray]) -> int | None:
    """Multiply-accumulates of one call, at the example's shapes.

    Args:
        model: an `onnx.ModelProto`, float or quantized.
        example: one feed, arrays by input name; the graph is run on it, since only then is every
            shape known.

    Returns None where the graph does not say: products inside of If, Loop and Scan, whose runs
    nobody has counted, and operators that hold whole attention layers.

    Raises:
        GraphError: the graph does not run on the example.
    """
    _, *inner = walk_graphs(model.graph)
    hidden = any(node.op_type in _COUNTS for graph in inner for node in graph.node)
    if hidden or any(node.op_type in UNCOUNTED for node in walk_nodes(model.graph)):
        return None
    counted = [node for node in model.graph.node if node.op_type in _COUNTS]
    shapes = _shapes(model, counted, example)
    return sum(_COUNTS[node.op_type](node, shapes.__getitem__) for node in counted)


def _shapes(
    model: Any, counted: list[Any], example: Mapping[str, np.ndarray]
) -> Mapping[str, Shape]:
    """The shape of everything that those nodes read and make."""
    from onnx import ValueInfoProto, helper

    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes.update({name: array.shape for name, array in example.items()})
    names = [name for node in counted for name in (*node.input, *node.output) if name]
    wanted = [name for name in dict.fromkeys(names) if name not in shapes]
    if wanted:
        # The shapes alone come out, so that no inner tensor need be held.
        opened = copied(model)
        del opened.graph.output[:]
        for place, name in enumerate(wanted):
            output = f"edgepack_shape_{place}"
            opened.graph.node.append(helper.make_node("Shape", [name], [output]))
            opened.graph.output.append(ValueInfoProto(name=output))
        found = Runner(opened.SerializeToString(), optimize=False).run(example)
        shapes.update({n: tuple(map(int, s)) for n, s in zip(wanted, found, strict=True)})
    return shapes


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def _convolution(weights: int) -> Count:
    """Weights (outputs, inputs / groups, *kernel): every output element sums over all but one."""
    return lambda node, of: prod(of(node.output[0])) * prod(of(node.input[weights])[1:])


def _transposed(node: Any, of: Callable[[str], Shape]) -> int:
    """Weights (inputs, outputs / groups, *kernel): every input element gives to so many sums."""
    return prod(of(node.input[0])) * prod(of(node.input[1])[1:])


def _product(node: Any, of: Callable[[str], Shape]) -> int:
    """(..., rows, K) by (..., K, columns)."""
    summed = -2 if _attribute(node, "transA", 0) else -1
    return prod(of(node.output[0])) * of(node.input[0])[summed]


def _of_bits(node: Any, of: Callable[[str], Shape]) -> int:
    """(..., rows, K) by weights packed in blocks, whose number of columns is the attribute N."""
    return prod(of(node.input[0])) * int(_attribute(node, "N"))


def _recurrent(node: Any, of: Callable[[str], Shape]) -> int:
    """X (steps, batch, inputs); W and R, of both directions, for every step of every sample."""
    steps = prod(of(node.input[0])[:2])
    return steps * (prod(of(node.input[1])) + prod(of(node.input[2])))


def _einsum(node: Any, of: Callable[[str], Shape]) -> int:
    """All indices once for every product; "..." stands for the axes that the letters leave."""
    equation = _attribute(node, "equation").decode().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        before, dots, after = term.partition("...")
        shape = of(name)
        left = len(shape) - len(before) - len(after) if dots else 0
        # Axes under the dots broadcast from the last one on.
        dotted = [f"...{place}" for place in reversed(range(left))]
        for letter, size in zip([*before, *dotted, *after], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values()) * (len(terms) - 1)


# onnxruntime's fusions of whole attention layers: their products are not counted here.
UNCOUNTED = frozenset(
    {
        "Attention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention",
        "LongformerAttention",
        "MultiHeadAttention", "PackedAttention", "QAttention", "SparseAttention",
    }
)  # fmt: skip
_COUNTS: dict[str, Count] = {
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    **dict.fromkeys(
        (
            *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulInteger"),
            *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul"),
        ),
        _product,
    ),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _of_bits),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Einsum": _einsum,
}
