"""Where the Q/DQ pairs stand: what onnxruntime turns into integer kernels.

Convolutions, Gemm and MatMul with constant weights become integer wherever they stand. Cheap
operators between them follow only where integers come in and integers go out; anything else
would pay for conversions and rounding without saving time. A Relu or Clip behind a quantized
operator vanishes: its bounds are those of the quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgepack.chain.graphs.view import GraphView, attribute
from edgepack.chain.quantize.layers import LINEAR, Layer, inner_layers, is_layer, read_layer

# Integer kernels with a quantization of their own behind them; the number of activations read
# (None: all inputs).
ARITHMETIC: dict[str, int | None] = {
    "Add": 2,
    "Mul": 2,
    "Concat": None,
    "AveragePool": 1,
    "GlobalAveragePool": 1,
    "Sigmoid": 1,
    "LeakyRelu": 1,
    "Relu": 1,
}
# Moves values without changing them: the same quantization on both sides.
MOVES = (
    "MaxPool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "DepthToSpace",
)
CLAMPS = ("Relu", "Clip")


# A node's index, and a tensor that it reads behind its Q/DQ pair.
Read = tuple[int, str]
# The layer at a node's index, or the reason why it cannot become integer.
Reader = Callable[[GraphView, int], "Layer | str"]


@dataclass(frozen=True)
class Placement:
    """What becomes integer.

    Attributes:
        layers: the linear layers, in the graph's order.
        points: every quantized tensor -> the tensor whose quantization it shares (often itself).
        reads: which nodes read a quantized tensor behind its Q/DQ pair; all others read it as it
            was made.
        float_layers: (name, operator, reason) of layers that stay float.
        arithmetic: indices of the other operators with integer kernels.
        moves: indices of operators that pass integers through.
        clamps: indices of absorbed Relu and Clip nodes, each with the tensor it made.
        rounded: quantized tensors of which whatever else sees them, outputs and subgraphs, sees
            what is behind the DQ.
    """

    layers: tuple[Layer, ...]
    points: dict[str, str]
    reads: frozenset[Read]
    float_layers: tuple[tuple[str, str, str], ...]
    arithmetic: frozenset[int] = frozenset()
    moves: frozenset[int] = frozenset()
    clamps: dict[int, str] = field(default_factory=dict)
    rounded: frozenset[str] = frozenset()

    def roots(self) -> list[str]:
        """The tensors that need a quantization of their own, in the graph's order."""
        return list(dict.fromkeys(self.points.values()))


def place(view: GraphView, exclude: Collection[str], read: Reader = read_layer) -> Placement:
    """Decide what becomes integer in a prepared graph; nodes named in `exclude` stay float."""
    layers: dict[int, Layer] = {}
    float_layers = []
    for index, node in enumerate(view.nodes):
        if not is_layer(node):
            continue
        result = "excluded by name" if node.name in exclude else read(view, index)
        if isinstance(result, Layer):
            layers[index] = result
        else:
            float_layers.append((node.name, node.op_type, result))
    float_layers += inner_layers(view.nodes)
    return _Placer(view, layers, exclude).placement(tuple(float_layers))


class _Placer:
    def __init__(self, view: GraphView, layers: dict[int, Layer], exclude: Collection[str]) -> None:
        self.view = view
        self.layers = layers
        others = {
            index
            for index, node in enumerate(view.nodes)
            if node.name not in exclude and self._may_follow(index)
        }
        self.integer = set(layers) | others
        self._remove_isolated(others)

    def _may_follow(self, index: int) -> bool:
        node = self.view.nodes[index]
        if node.op_type in MOVES:
            # MaxPool's indices are of no use on integers.
            return len([name for name in node.output if name]) == 1
        if node.op_type == "AveragePool" and attribute(node, "dilations") is not None:
            return all(d == 1 for d in attribute(node, "dilations"))
        return node.op_type in ARITHMETIC and not any(
            self.view.is_constant(name) for name in self._activations(index)
        )

    def _activations(self, index: int) -> list[str]:
        node = self.view.nodes[index]
        if node.op_type in MOVES or node.op_type in LINEAR:
            return [node.input[0]]
        return list(node.input)[: ARITHMETIC[node.op_type]]

    def _clamp_of(self, index: int) -> int | None:
        """The Relu or Clip that the quantization behind an integer operator absorbs."""
        node = self.view.nodes[index]
        if node.op_type in MOVES or node.op_type in CLAMPS or len(node.output) != 1:
            return None
        reader = self.view.only_reader(node.output[0])
        if reader is None or self.view.nodes[reader].op_type not in CLAMPS:
            return None
        bounds = self._bounds(reader)
        # A range that holds zero is all that the quantization can express.
        return reader if bounds is not None and bounds[0] <= 0 <= bounds[1] else None

    def _bounds(self, index: int) -> tuple[float, float] | None:
        node = self.view.nodes[index]
        if node.op_type == "Relu":
            return 0.0, np.inf
        limits = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
        for slot, name in enumerate(list(node.input)[1:3]):
            value = self.view.constant(name) if name else None
            if name and value is None:
                return None
            if value is not None:
                limits[slot] = value.item()
        return float(limits[0]), float(limits[1])

    def _remove_isolated(self, others: set[int]) -> None:
        """Take out, until nothing changes, what has no integers on one of its sides."""
        changed = True
        while changed:
            changed = False
            for index in sorted(others & self.integer):
                if not (self._reads_integers(index) and self._feeds_integers(index)):
                    self.integer.discard(index)
                    changed = True

    def _reads_integers(self, index: int) -> bool:
        return all(self._maker(name) is not None for name in self._activations(index))

    def _maker(self, name: str) -> int | None:
        """The integer node behind a tensor, through a clamp that vanishes."""
        index = self.view.producer.get(name)
        if index is None:
            return None
        if index in self.integer and not self._absorbed(index):
            return index
        source = self.view.nodes[index]
        if source.op_type in CLAMPS and source.input:
            before = self.view.producer.get(source.input[0])
            if before is not None and before in self.integer and self._clamp_of(before) == index:
                return before
        return None

    def _absorbed(self, index: int) -> bool:
        node = self.view.nodes[index]
        if node.op_type not in CLAMPS:
            return False
        before = self.view.producer.get(node.input[0])
        return before is not None and before in self.integer and self._clamp_of(before) == index

    def _feeds_integers(self, index: int) -> bool:
        return any(reader in self.integer for reader in self._final_readers(index))

    def _final_readers(self, index: int) -> Iterator[int]:
        clamp = self._clamp_of(index)
        for name in self.view.nodes[index if clamp is None else clamp].output:
            yield from self.view.readers.get(name, [])

    def placement(self, float_layers: tuple[tuple[str, str, str], ...]) -> Placement:
        clamps: dict[int, str] = {}
        points: dict[str, str] = {}
        active = {i for i in self.integer if not self._absorbed(i)}
        for index in sorted(active):
            node = self.view.nodes[index]
            for name in self._activations(index):
                points.setdefault(name, name)
            output = node.output[0]
            if node.op_type in MOVES:
                points[output] = points[node.input[0]]
                continue
            layer = self.layers.get(index)
            # Without a Q behind it a Gemm or MatMul gives float at no cost; a Conv cannot.
            if layer is not None and layer.op != "Conv" and not self._feeds_integers(index):
                continue
            clamp = self._clamp_of(index)
            if clamp is not None:
                output = self.view.nodes[clamp].output[0]
                clamps[clamp] = output
            points[output] = output
            if layer is not None:
                layer.output = output
        integer_outputs = {name for i in (*active, *clamps) for name in self.view.nodes[i].output}
        reads = {
            (index, name)
            for index, node in enumerate(self.view.nodes)
            for name in node.input
            if name in points and (index in active or name in integer_outputs)
        }
        return Placement(
            layers=tuple(self.layers[i] for i in sorted(self.layers)),
            points=points,
            reads=frozenset(reads),
            float_layers=float_layers,
            arithmetic=frozenset(
                i
                for i in active
                if i not in self.layers and self.view.nodes[i].op_type not in MOVES
            ),
            moves=frozenset(i for i in active if self.view.nodes[i].op_type in MOVES),
            clamps=clamps,
            rounded=frozenset(
                integer_outputs & points.keys() & (self.view.outputs | self.view.captured)
            ),
        )
