"""Place Q/DQ pairs so that onnxruntime fuses them to integer kernels.

Convolutions, Gemm and MatMul with constant weights always become integer. Cheap operators between
them follow only if they read and feed integers; otherwise conversions and rounding would cost more
than the operator saves. A Relu or Clip behind a quantized operator is removed, as the range of the
quantization has the same bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from edgepack.onnx_tools.operators import Trait, having, operator, with_int8
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.passes.quantize.layers import Layer, find_subgraph_layers, is_layer, read_layer

# Operators that move values: both sides share a quantization.
MOVES = with_int8("moves")
# Operators with integer kernels that requantize their output.
ARITHMETIC = with_int8("arithmetic")
CLAMPS = having(Trait.CLAMPS)


# Index of a node, and a tensor that it reads through a Q/DQ pair.
Read = tuple[int, str]
# Returns the layer at a node, or the reason why it cannot become integer.
Reader = Callable[[GraphView, int], "Layer | str"]


@dataclass(frozen=True)
class Placement:
    """Nodes and tensors that become integer.

    Attributes:
        layers: the linear layers, in the graph's order.
        points: every quantized tensor -> the tensor whose quantization it shares (often itself).
        reads: nodes that read a quantized tensor through its Q/DQ pair; all others read the float
            tensor.
        float_layers: (name, operator, reason) of layers that stay float.
        arithmetic: indices of the other operators with integer kernels.
        moves: indices of operators that pass integers through.
        clamps: indices of absorbed Relu and Clip nodes, each with its output.
        rounded: quantized tensors that are outputs or read by subgraphs, which then get the value
            behind the DQ.
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
        """List the tensors with a quantization of their own, in graph order."""
        return list(dict.fromkeys(self.points.values()))


def place(view: GraphView, exclude: Collection[str], read: Reader = read_layer) -> Placement:
    """Decide which nodes of a prepared graph become integer; nodes in `exclude` stay float."""
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
    float_layers += find_subgraph_layers(view.nodes)
    return _Placer(view, layers, exclude).placement(tuple(float_layers))


def _is_move(node: onnx.NodeProto) -> bool:
    """Return True for an operator that passes integers through."""
    # A Resize to the nearest value copies values; the other modes mix them.
    nearest = node.op_type == "Resize" and attribute(node, "mode", b"nearest") == b"nearest"
    return node.op_type in MOVES or nearest


class _Placer:
    """Grows the set of integer nodes from the layers.

    Example: Conv -> Relu -> MaxPool -> Conv. Both layers are integer, MaxPool lies between integers
    and follows, and the first layer absorbs the Relu.
    """

    def __init__(self, view: GraphView, layers: dict[int, Layer], exclude: Collection[str]) -> None:
        self.view = view
        self.layers = layers
        others: set[int] = set()
        for index, node in enumerate(view.nodes):
            if node.name not in exclude and self._may_follow(index):
                others.add(index)
        self.integer = set(layers) | others
        self._remove_isolated(others)

    def _may_follow(self, index: int) -> bool:
        """Return True if a node can be integer between integer nodes."""
        node = self.view.nodes[index]
        if _is_move(node):
            # Integer kernels do not support the second output of MaxPool, the indices.
            return node.op_type != "MaxPool" or len(list(filter(None, node.output))) == 1
        if node.op_type == "AveragePool" and attribute(node, "dilations") is not None:
            return set(attribute(node, "dilations")) <= {1}
        if node.op_type not in ARITHMETIC:
            return False
        return not any(map(self.view.is_constant, self._activations(index)))

    def _activations(self, index: int) -> list[str]:
        node = self.view.nodes[index]
        return list(node.input)[: operator(node.op_type).activations]

    def _clamp_of(self, index: int) -> int | None:
        """Return the Relu or Clip that the quantization behind an integer operator absorbs."""
        node = self.view.nodes[index]
        if _is_move(node) or node.op_type in CLAMPS or len(node.output) != 1:
            return None
        reader = self.view.only_reader(node.output[0])
        if reader is None or self.view.nodes[reader].op_type not in CLAMPS:
            return None
        bounds = self._bounds(reader)
        # A quantized range always holds zero, so it cannot express a Clip to [1, 2].
        if bounds is None or not bounds[0] <= 0 <= bounds[1]:
            return None
        return reader

    def _bounds(self, index: int) -> tuple[float, float] | None:
        """Return the constant bounds of a Relu or Clip; None if they are not constant."""
        node = self.view.nodes[index]
        if node.op_type == "Relu":
            return 0.0, np.inf
        limits = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
        for slot, name in enumerate(list(node.input)[1:3]):
            if not name:
                continue
            value = self.view.constant(name)
            if value is None:
                return None
            limits[slot] = value.item()
        return float(limits[0]), float(limits[1])

    def _remove_isolated(self, others: set[int]) -> None:
        """Remove operators without integers on both sides, until nothing changes."""
        # Removing one operator may take the integers from its neighbours: of Conv -> Add -> Mul ->
        # Softmax, Mul goes first as Softmax reads no integers, then Add as Mul reads none.
        changed = True
        while changed:
            changed = False
            for index in sorted(others & self.integer):
                if not (self._reads_integers(index) and self._feeds_integers(index)):
                    self.integer.discard(index)
                    changed = True

    def _reads_integers(self, index: int) -> bool:
        return all(self._integer_producer(name) is not None for name in self._activations(index))

    def _integer_producer(self, name: str) -> int | None:
        """Return the integer node that produces a tensor, directly or through an absorbed clamp."""
        index = self.view.producer.get(name)
        if index is None:
            return None
        if index in self.integer and not self._is_absorbed(index):
            return index
        source = self.view.nodes[index]
        if source.op_type in CLAMPS and source.input:
            before = self.view.producer.get(source.input[0])
            if before is not None and before in self.integer and self._clamp_of(before) == index:
                return before
        return None

    def _is_absorbed(self, index: int) -> bool:
        node = self.view.nodes[index]
        if node.op_type not in CLAMPS:
            return False
        before = self.view.producer.get(node.input[0])
        return before is not None and before in self.integer and self._clamp_of(before) == index

    def _feeds_integers(self, index: int) -> bool:
        return not self.integer.isdisjoint(self._final_readers(index))

    def _final_readers(self, index: int) -> Iterator[int]:
        clamp = self._clamp_of(index)
        # Readers of an absorbed clamp read the integers of the operator before it.
        last = index if clamp is None else clamp
        for name in self.view.nodes[last].output:
            yield from self.view.readers.get(name, [])

    def _outputs(self, indices: Iterable[int]) -> set[str]:
        names: set[str] = set()
        for index in indices:
            names.update(self.view.nodes[index].output)
        return names

    def placement(self, float_layers: tuple[tuple[str, str, str], ...]) -> Placement:
        clamps: dict[int, str] = {}
        # Moves share the quantization of their input: of x -> MaxPool -> y, y maps to x.
        points: dict[str, str] = {}
        active: set[int] = set()
        moves: set[int] = set()
        for index in self.integer:
            if not self._is_absorbed(index):
                active.add(index)
                if _is_move(self.view.nodes[index]):
                    moves.add(index)
        for index in sorted(active):
            node = self.view.nodes[index]
            for name in self._activations(index):
                points.setdefault(name, name)
            output = node.output[0]
            if _is_move(node):
                # A Split has several outputs, which all share the quantization of its input.
                for part in filter(None, node.output):
                    points[part] = points[node.input[0]]
                continue
            layer = self.layers.get(index)
            # A Gemm or MatMul outputs float at no cost if no integer reads it; a Conv cannot.
            if layer is not None and layer.op != "Conv" and not self._feeds_integers(index):
                continue
            clamp = self._clamp_of(index)
            if clamp is not None:
                output = self.view.nodes[clamp].output[0]
                clamps[clamp] = output
            points[output] = output
            if layer is not None:
                layer.output = output
        integer_outputs = self._outputs((*active, *clamps))
        reads: set[Read] = set()
        for index, node in enumerate(self.view.nodes):
            for name in node.input:
                # A float node reads the pair too if the tensor exists only as integers.
                if name in points and (index in active or name in integer_outputs):
                    reads.add((index, name))
        return Placement(
            layers=tuple(self.layers[i] for i in sorted(self.layers)),
            points=points,
            reads=frozenset(reads),
            float_layers=float_layers,
            arithmetic=frozenset(active - moves - self.layers.keys()),
            moves=frozenset(moves),
            clamps=clamps,
            rounded=frozenset(
                integer_outputs & points.keys() & (self.view.outputs | self.view.captured)
            ),
        )
