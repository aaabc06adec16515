"""Choose the constants that become integers in the modes without stored ranges.

The mode "dynamic" chooses those of MatMul, Gemm and LSTM, whose activations onnxruntime quantizes
at run time; the mode "weights" those of every layer. Both choose tables of embeddings, of which an
inference reads only a few rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from edgepack.onnx_tools.operators import OPERATORS, Trait, having
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.passes.quantize.layers import (
    RETURNED_TO_FLOAT,
    Layer,
    by_index,
    find_subgraph_layers,
    is_layer,
    read_layer,
)

RECURRENT = having(Trait.RECURRENT)
# A smaller table saves fewer bytes than its extra operators cost.
TABLE = 4096
# Operators that stay float in the mode "dynamic", with the reason.
NOT_DYNAMIC = {row.name: row.no_dynamic for row in OPERATORS.values() if row.no_dynamic}


@dataclass(frozen=True)
class Constant:
    """Weight to quantize to s8 that is not the matrix of a linear layer.

    Attributes:
        index: the node's position in the graph.
        slot: its position among the node's inputs.
        name: of the initializer.
        values: float32.
        reduced: axes that share a scale.
    """

    index: int
    slot: int
    name: str
    values: np.ndarray
    reduced: tuple[int, ...]

    @property
    def _scale_axes(self) -> list[int]:
        """Axes with a scale for each position."""
        return [axis for axis in range(self.values.ndim) if axis not in self.reduced]

    @property
    def rows(self) -> np.ndarray:
        """Values as float64, (scales, values of each).

        Example: Conv weights (16, 8, 3, 3) with reduced = (1, 2, 3) give (16, 72).
        """
        scale_axes = self._scale_axes
        transposed = self.values.transpose(*scale_axes, *self.reduced)
        scales = int(np.prod(transposed.shape[: len(scale_axes)]))
        return np.asarray(transposed.reshape(scales, -1), dtype=np.float64)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the layout of the values."""
        order = [*self._scale_axes, *self.reduced]
        transposed = rows.reshape(self.values.transpose(order).shape)
        return np.ascontiguousarray(transposed.transpose(np.argsort(order)))

    def spread(self, scales: np.ndarray) -> np.ndarray:
        """Reshape one scale for each row so that it broadcasts over the values."""
        # 16 scales of Conv weights (16, 8, 3, 3) become (16, 1, 1, 1).
        shape = [1 if axis in self.reduced else n for axis, n in enumerate(self.values.shape)]
        return scales.reshape(shape)


@dataclass(frozen=True)
class Choice:
    """Nodes that become integer.

    Attributes:
        layers: the linear layers, in the graph's order.
        others: recurrent and transposed layers by node index, each with its weights.
        tables: tables of embeddings, by the index of the Gather that reads them.
        float_layers: (name, operator, reason) of layers that stay float.
    """

    layers: tuple[Layer, ...]
    others: dict[int, tuple[Constant, ...]]
    tables: dict[int, Constant]
    float_layers: tuple[tuple[str, str, str], ...]

    @property
    def indices(self) -> list[int]:
        """Indices of the nodes that become integer, in graph order."""
        return sorted({*by_index(self.layers), *self.others, *self.tables})

    @property
    def count(self) -> int:
        """Number of layers and tables."""
        return len(self.indices)

    def without(self, floats: Collection[str], view: GraphView) -> Choice:
        """Return the choice with the named nodes in float."""
        nodes = view.nodes
        excluded = [index for index in self.indices if nodes[index].name in floats]
        layers, others, tables = by_index(self.layers), dict(self.others), dict(self.tables)
        float_layers = list(self.float_layers)
        for index in excluded:
            # An index is in one of the three.
            for remaining in (layers, others, tables):
                remaining.pop(index, None)
            float_layers.append((nodes[index].name, nodes[index].op_type, RETURNED_TO_FLOAT))
        return Choice(tuple(layers.values()), others, tables, tuple(float_layers))


def choose_nodes(view: GraphView, mode: str, exclude: Collection[str]) -> Choice:
    """Choose the nodes of a prepared graph that become integer.

    Args:
        view: of the graph.
        mode: "dynamic" or "weights".
        exclude: names of nodes that stay float.
    """
    layers: list[Layer] = []
    others: dict[int, tuple[Constant, ...]] = {}
    tables: dict[int, Constant] = {}
    float_layers = []
    for index, node in enumerate(view.nodes):
        table = read_table(view, index)
        if table is None and not (
            is_layer(node) and (mode == "dynamic" or _has_weights(view, node))
        ):
            continue
        excluded = node.name in exclude
        result = "excluded by name" if excluded else table or _read_node_weights(view, index, mode)
        if isinstance(result, Layer):
            layers.append(result)
        elif isinstance(result, Constant):
            tables[index] = result
        elif isinstance(result, tuple):
            others[index] = result
        else:
            float_layers.append((node.name, node.op_type, result))
    # Tables are checked last, since their other readers have to be integer as well.
    integer_nodes = {*by_index(layers), *others, *tables}
    for index, constant in list(tables.items()):
        if not is_replaceable(view, constant, integer_nodes):
            del tables[index]
    return Choice(tuple(layers), others, tables, (*float_layers, *find_subgraph_layers(view.nodes)))


def _has_weights(view: GraphView, node: onnx.NodeProto) -> bool:
    """Return True if a node reads a constant; a product of two activations has no weights."""
    return any(map(view.is_constant, node.input))


def _read_node_weights(
    view: GraphView, index: int, mode: str
) -> Layer | tuple[Constant, ...] | str:
    node = view.nodes[index]
    if mode == "dynamic" and node.op_type in NOT_DYNAMIC:
        return NOT_DYNAMIC[node.op_type]
    if node.op_type in RECURRENT or node.op_type == "ConvTranspose":
        return read_weights(view, index)
    return read_layer(view, index)


def read_weights(view: GraphView, index: int) -> tuple[Constant, ...] | str:
    """Return the weights of a recurrent layer or a convolution, or why they cannot be integers."""
    node = view.nodes[index]
    if node.op_type in RECURRENT:
        return _read_recurrent(view, index)
    # Conv is (outputs, inputs of a group, *kernel), ConvTranspose (inputs, outputs of a group,
    # *kernel): there groups share a scale.
    outputs = int(node.op_type == "ConvTranspose")
    axes = len(view.shapes.get(node.input[1], ()))
    return _read_constants(view, index, {1: tuple(axis for axis in range(axes) if axis != outputs)})


def _read_recurrent(view: GraphView, index: int) -> tuple[Constant, ...] | str:
    """Return the weights of input and state, (directions, gates x hidden, K), a scale per row."""
    if attribute(view.nodes[index], "layout", 0):
        return "its layout is batch first, which onnxruntime does not run"
    return _read_constants(view, index, {1: (2,), 2: (2,)})


def _read_constants(
    view: GraphView, index: int, slots: dict[int, tuple[int, ...]]
) -> tuple[Constant, ...] | str:
    """Return the weights of a node, or why they cannot be integers.

    Args:
        view: of the graph.
        index: of the node.
        slots: axes that share a scale, by input slot.
    """
    constants = []
    for slot, reduced in slots.items():
        name = view.nodes[index].input[slot]
        values = view.constant(name)
        if values is None:
            return "its weights are not constant"
        if values.dtype != np.float32:
            return f"its weights are {values.dtype}, not float32"
        if values.size == 0:
            return "it has no weights"
        if not np.isfinite(values).all():
            return "its weights hold NaN or infinity"
        constants.append(Constant(index, slot, name, values, reduced))
    return tuple(constants)


def read_table(view: GraphView, index: int) -> Constant | None:
    """Return the table of embeddings that a Gather reads rows from; None for other nodes."""
    node = view.nodes[index]
    if node.op_type != "Gather":
        return None
    if attribute(node, "axis", 0) != 0 or view.is_constant(node.input[1]):
        return None
    values = view.constant(node.input[0])
    if values is None or values.ndim != 2 or values.size < TABLE or values.dtype != np.float32:
        return None
    if not np.isfinite(values).all():
        return None
    return Constant(index, 0, node.input[0], values, (1,))


def is_replaceable(view: GraphView, table: Constant, integer_nodes: Collection[int]) -> bool:
    """Return True if no other reader needs a table in float, to avoid storing it twice."""
    if table.name in view.outputs:
        return False
    for reader in view.readers[table.name]:
        if view.nodes[reader].op_type != "Gather" and reader not in integer_nodes:
            return False
    return True
