"""Read convolutions, Gemm and MatMul with constant weights as matrices in one order.

The weights of every layer are arranged in rows, one per output channel. The columns have the order
in which onnxruntime's MLAS walks the reduction axis K: for a convolution kernel row, kernel column,
input channel of the group. Pairs (0,1), (2,3), ... of columns are added in 16 bits on x86 without
VNNI.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from edgepack.onnx_tools.operators import OPERATORS, with_int8
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.onnx_tools.walk import subgraphs, walk_nodes

# Operators that can become integer if their weights are constant.
LINEAR = with_int8("layer")
# Operators that the report lists as layers although they stay float, with the reason.
FLOAT_LAYERS = {row.name: row.no_int8 for row in OPERATORS.values() if row.no_int8}
# Reason of a layer that repair took back.
RETURNED_TO_FLOAT = "returned to float to meet the quality gate"
# Measured on x86-64 with VNNI: QLinearConv of three spatial axes takes 1.4 to 1.9 times as long as
# Conv.
SLOW_VOLUME = "three-dimensional: onnxruntime's int8 convolution is slower than its float one"


@dataclass
class Layer:
    """One linear layer on its way to int8.

    Attributes:
        index: the node's position in the graph.
        name: the node's name.
        op: "Conv", "Gemm" or "MatMul".
        input: tensor that it reads.
        output: tensor that it outputs, after an activation that its quantization absorbs.
        weight: its initializer's name.
        bias_name: its bias's initializer, or None.
        added: index of the float Add behind a MatMul whose constant (`bias_name`) is its bias.
        shape: of the weights as stored.
        groups: of a convolution; 1 for other layers.
        transposed: whether the weights are stored (outputs, inputs).
        rows: (outputs, K), float64.
        bias: (outputs,), float64; zeros if the node has none.
        shared: whether another node reads the same weights too.
        window: of a convolution; None for other layers.
    """

    index: int
    name: str
    op: str
    input: str
    output: str
    weight: str
    bias_name: str | None
    shape: tuple[int, ...]
    groups: int
    transposed: bool
    rows: np.ndarray
    bias: np.ndarray
    shared: bool = False
    window: Window | None = None
    added: int | None = None

    @property
    def axis(self) -> int:
        """Axis of the stored weights that counts output channels."""
        # Conv is (outputs, inputs, *kernel), MatMul (inputs, outputs), Gemm either of the two.
        return int(not (self.op == "Conv" or self.transposed))

    @property
    def channels(self) -> int:
        """Number of input channels, over all groups."""
        if self.op == "Conv":
            return self.shape[1] * self.groups
        return int(self.rows.shape[1])

    @property
    def depthwise(self) -> bool:
        """True if each output reads one channel that no other output reads.

        MLAS keeps the 16-bit products of two-dimensional ones apart, so no pair saturates.
        """
        return self.op == "Conv" and self.groups == self.shape[0] and self.shape[1] == 1

    @property
    def paired(self) -> bool:
        """True if neighbouring columns are added in 16 bits without VNNI."""
        return not (self.depthwise and len(self.shape) == 4)

    def per_group(self, rows: np.ndarray) -> np.ndarray:
        """Reshape rows to (groups, outputs of the group, K)."""
        return rows.reshape(self.groups, -1, rows.shape[-1])

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the layout in which the node stores its weights."""
        if self.op == "Conv":
            outputs, inputs, *kernel = self.shape
            kernels = rows.reshape(outputs, *kernel, inputs)
            return np.ascontiguousarray(np.moveaxis(kernels, -1, 1))
        if self.transposed:
            return np.ascontiguousarray(rows)
        return np.ascontiguousarray(rows.T)


@dataclass(frozen=True)
class Window:
    """Kernel geometry of a convolution, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    auto_pad: str

    def padding(self, size: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the zeros before and after each spatial axis of an input of that size."""
        if not self.auto_pad.startswith("SAME"):
            return list(zip(self.begin, self.end, strict=True))
        pads = []
        for length, k, s, d in zip(size, self.kernel, self.strides, self.dilations, strict=True):
            total = max((-(-length // s) - 1) * s + (k - 1) * d + 1 - length, 0)
            small, large = total // 2, total - total // 2
            # SAME_UPPER puts an odd zero at the end: a length of 8 with a kernel of 3 and a stride
            # of 2 needs one zero, (0, 1).
            if self.auto_pad == "SAME_UPPER":
                pads.append((small, large))
            else:
                pads.append((large, small))
        return pads


def read_layer(view: GraphView, index: int) -> Layer | str:
    """Return the layer at a node, or the reason why it cannot become integer."""
    node = view.nodes[index]
    if node.op_type not in LINEAR:
        return FLOAT_LAYERS[node.op_type]
    weights = view.constant(node.input[1])
    if weights is None:
        if node.op_type == "MatMul" and view.is_constant(node.input[0]):
            return "its constant is the first operand, so it has no scale per output channel"
        if node.op_type == "MatMul":
            return "both operands are activations, so its pairs of products cannot be bounded"
        return "its weights are not constant"
    if view.is_constant(node.input[0]):
        return "its input is constant"
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, not float32"
    if weights.size == 0:
        return "it has no weights"
    bias_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
    bias = np.zeros(1) if bias_name is None else view.constant(bias_name)
    if bias is None:
        return "its bias is not constant"
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return "its weights hold NaN or infinity"
    if node.op_type == "Conv":
        return _read_convolution(view, index, weights, bias_name, bias)
    return _read_product(view, index, weights, bias_name, bias)


def _read_convolution(
    view: GraphView, index: int, weights: np.ndarray, bias_name: str | None, bias: np.ndarray
) -> Layer | str:
    node = view.nodes[index]
    axes = weights.ndim - 2
    if axes not in (1, 2, 3):
        return f"its weights have {weights.ndim} axes"
    pads = list(attribute(node, "pads", [0] * (2 * axes)))
    window = Window(
        kernel=weights.shape[2:],
        strides=tuple(attribute(node, "strides", [1] * axes)),
        dilations=tuple(attribute(node, "dilations", [1] * axes)),
        begin=tuple(pads[:axes]),
        end=tuple(pads[axes:]),
        auto_pad=attribute(node, "auto_pad", b"NOTSET").decode(),
    )
    # (outputs, inputs, *kernel) becomes (outputs, *kernel, inputs), so that input channels are
    # neighbours: weights (16, 8, 3, 3) give rows (16, 72).
    rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
    return _build_layer(
        view, index, weights, bias_name, rows, bias, int(attribute(node, "group", 1)), False, window
    )


def _read_product(
    view: GraphView, index: int, weights: np.ndarray, bias_name: str | None, bias: np.ndarray
) -> Layer | str:
    node = view.nodes[index]
    if weights.ndim != 2:
        return f"its constant operand has {weights.ndim} axes, not 2"
    if attribute(node, "transA", 0):
        return "it transposes its activation"
    # alpha A B + beta C: both factors are folded into the rows and the bias.
    transposed = bool(attribute(node, "transB", 0))
    rows = (weights if transposed else weights.T) * np.float64(attribute(node, "alpha", 1.0))
    outputs = len(rows)
    if bias.size != 1 and (bias.size != outputs or bias.shape[-1] != outputs):
        return f"its bias of shape {bias.shape} is not one value per output channel"
    bias = bias.ravel() * np.float64(attribute(node, "beta", 1.0))
    layer = _build_layer(view, index, weights, bias_name, rows, bias, 1, transposed, None)
    if node.op_type == "MatMul":
        _take_added_bias(view, layer)
    return layer


def _take_added_bias(view: GraphView, layer: Layer) -> None:
    """Take the constant of the Add behind a MatMul as its bias."""
    reader = view.only_reader(layer.output)
    if reader is None or view.nodes[reader].op_type != "Add":
        return
    # Only a vector with one value per output channel acts as a bias.
    for name in view.nodes[reader].input:
        value = view.constant(name)
        if value is not None and value.shape == (len(layer.rows),) and np.isfinite(value).all():
            layer.bias_name, layer.added = name, reader
            layer.bias = value.astype(np.float64)


def _build_layer(
    view: GraphView,
    index: int,
    weights: np.ndarray,
    bias_name: str | None,
    rows: np.ndarray,
    bias: np.ndarray,
    groups: int,
    transposed: bool,
    window: Window | None,
) -> Layer:
    node = view.nodes[index]
    return Layer(
        index=index,
        name=node.name,
        op=node.op_type,
        input=node.input[0],
        output=node.output[0],
        weight=node.input[1],
        bias_name=bias_name,
        shape=weights.shape,
        groups=groups,
        transposed=transposed,
        rows=np.array(rows, dtype=np.float64),
        bias=np.array(np.broadcast_to(bias, (len(rows),)), dtype=np.float64),
        shared=len(view.readers[node.input[1]]) > 1,
        window=window,
    )


def is_volume(view: GraphView, index: int) -> bool:
    """Return True for a convolution over three spatial axes."""
    node = view.nodes[index]
    return node.op_type == "Conv" and len(view.shapes.get(node.input[1], ())) == 5


def is_layer(node: onnx.NodeProto) -> bool:
    """Return True if the report counts a node as a layer."""
    return node.op_type in LINEAR or node.op_type in FLOAT_LAYERS


def find_subgraph_layers(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, operator, reason) of the layers in subgraphs; all of them stay float."""
    for node in nodes:
        for graph in subgraphs(node):
            for inner in filter(is_layer, walk_nodes(graph)):
                reason = f"it is in a subgraph of {node.name} ({node.op_type})"
                yield inner.name or inner.op_type, inner.op_type, reason


def by_index(layers: Iterable[Layer]) -> dict[int, Layer]:
    """Return layers by the index of their node."""
    indexed = {}
    for layer in layers:
        indexed[layer.index] = layer
    return indexed


def by_added_bias(layers: Iterable[Layer]) -> dict[int, Layer]:
    """Return the layers whose bias is an Add behind them, by the index of that Add."""
    # MatMul at node 4 and its Add at node 5 give {5: layer}.
    indexed = {}
    for layer in layers:
        if layer.added is not None:
            indexed[layer.added] = layer
    return indexed
