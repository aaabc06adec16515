"""Find tensors whose channels can be scaled together.

The producer of a tensor can divide channel j by s_j and its readers can multiply it by s_j, as long
as all operators between them pass a positive factor through. Such tensors form a class, with one
factor for each channel. Makers are linear layers (a row of the weights and its bias) and
LayerNormalization (its gain and offset); readers are linear layers (a column of the weights).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx

from edgepack.onnx_tools.axes import Axis, Ties
from edgepack.onnx_tools.operators import Trait, operator, with_int8
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.onnx_tools.walk import is_standard


@dataclass(frozen=True)
class Reader:
    """Weights that read a class.

    Attributes:
        index: of the node.
        weight: its initializer.
        axis: of the weights that counts input channels.
        channel_scales: True if each channel is read by weights with their own scale: those of a
            depthwise convolution, or the constant of a Mul, which stays float.
    """

    index: int
    weight: str
    axis: int
    channel_scales: bool


@dataclass
class Scalable:
    """Tensors whose channels can be scaled.

    Attributes:
        tensors: axis of the channels, by tensor name.
        makers: indices of the nodes that produce them.
        constants: initializers to divide, each with the axis of the channels.
        readers: weights to multiply.
    """

    tensors: dict[str, int] = field(default_factory=dict)
    makers: list[int] = field(default_factory=list)
    constants: list[Axis] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)


class Classes:
    """Classes of one prepared graph.

    Example: in Conv a -> Relu -> Conv b the tensors between the layers form a class. Dividing row j
    of a's weights and its bias by s_j, and multiplying column j of b's weights by s_j, changes no
    output.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._ties = Ties()
        self._bound: dict[Axis, str] = {}
        self._makers: list[tuple[Axis, int, list[Axis]]] = []
        self._readers: list[tuple[Axis, Reader]] = []
        self._constants: list[tuple[Axis, Axis]] = []
        for names, reason in (
            (view.inputs, "the network's input"),
            (view.outputs, "the network's output"),
            (view.captured, "read by a subgraph"),
        ):
            for name in names:
                self._bind(name, reason)
        for index, node in enumerate(view.nodes):
            if not self._tie_node(index, node):
                for name in filter(None, (*node.input, *node.output)):
                    self._bind(name, f"{node.op_type} blocks it")

    def collect(self) -> tuple[list[Scalable], Counter[str]]:
        """Return the classes that can be scaled, and count the reasons why others cannot."""
        classes: dict[Axis, Scalable] = {}
        # The axes of a class share a root, so the root collects its tensors, makers and readers.
        for name, axis in self._ties:
            scalable = classes.setdefault(self._ties.root((name, axis)), Scalable())
            scalable.tensors[name] = axis
        for at, index, constants in self._makers:
            classes[self._ties.root(at)].makers.append(index)
            classes[self._ties.root(at)].constants += constants
        for at, constant in self._constants:
            classes[self._ties.root(at)].constants.append(constant)
        for at, reader in self._readers:
            classes[self._ties.root(at)].readers.append(reader)
        reasons: dict[Axis, str] = {}
        for at, reason in self._bound.items():
            reasons.setdefault(self._ties.root(at), reason)
        blocked: Counter[str] = Counter()
        free = []
        for root, scalable in classes.items():
            if not scalable.readers:
                continue
            reason = reasons.get(root, "")
            if not (reason or scalable.makers):
                reason = "its producers have no weights"
            if reason:
                blocked[reason] += 1
            else:
                free.append(scalable)
        return free, blocked

    def _bind(self, name: str, reason: str, but: tuple[int, ...] = ()) -> None:
        """Exclude the axes of a tensor from scaling, except some."""
        for axis in range(len(self._view.shapes.get(name, ()))):
            if axis not in but:
                self._ties.root((name, axis))
                self._bound.setdefault((name, axis), reason)

    def _tie_node(self, index: int, node: onnx.NodeProto) -> bool:
        """Tie the axes that an operator passes factors through; False if it passes none."""
        shapes, view = self._view.shapes, self._view
        has_shapes = shapes.keys() >= set(filter(None, (*node.input, *node.output)))
        if not has_shapes or not is_standard(node) or len(node.output) != 1:
            return False
        if not node.input:
            return False
        source, output = node.input[0], node.output[0]
        traits = operator(node.op_type).traits
        if Trait.HOMOGENEOUS in traits:
            for name in node.input[1:]:
                self._bind(name, f"{node.op_type} reads it")
            return self._tie_through(source, output, dict(enumerate(range(len(shapes[output])))))
        # relu(s x) = s relu(x), and s x + s y = s (x + y), but in s x * y only one operand is
        # scaled.
        if Trait.ADDS in traits:
            return self._tie_sum(list(node.input), output)
        if Trait.SCALES in traits:
            return self._tie_product(index, node)
        if Trait.POOLS in traits:
            return self._tie_through(source, output, {1: 1})
        if Trait.FLATTENS in traits:
            before, after = shapes[source], shapes[output]
            flat = len(after) == 2 <= len(before) and set(before[2:]) <= {1}
            same = flat and isinstance(before[1], int) and before[1] == after[1]
            return same and self._tie_through(source, output, {1: 1})
        if node.op_type == "Transpose":
            # perm (0, 2, 1) moves axis 1 to position 2, and axis 2 to position 1.
            order = attribute(node, "perm", list(reversed(range(len(shapes[source])))))
            positions = dict(zip(order, range(len(order)), strict=True))
            return self._tie_through(source, output, positions)
        if node.op_type == "LayerNormalization":
            return self._tie_normalization(index, node)
        if node.op_type in with_int8("layer") and view.constant(node.input[1]) is not None:
            return self._tie_layer(index, node)
        return False

    def _tie_through(self, source: str, target: str, axes: dict[int, int]) -> bool:
        for before, after in axes.items():
            self._ties.tie((source, before), (target, after))
        self._bind(source, "it mixes channels", tuple(axes))
        self._bind(target, "it mixes channels", tuple(axes.values()))
        return True

    def _tie_sum(self, inputs: list[str], output: str) -> bool:
        """Tie all operands of a sum, constants included."""
        rank = len(self._view.shapes[output])
        for name in inputs:
            shape = self._view.shapes[name]
            constant = self._view.is_constant(name)
            for axis in range(rank):
                # Operands align with the last axes: (8,) added to (1, 4, 8) has its axis 0 at 2.
                operand_axis = axis - rank + len(shape)
                if operand_axis < 0 or shape[operand_axis] != self._view.shapes[output][axis]:
                    self._ties.root((output, axis))
                    self._bound.setdefault((output, axis), "one value is added to all channels")
                elif constant and self._has_single_reader(name):
                    self._constants.append(((output, axis), (name, operand_axis)))
                elif constant:
                    self._ties.root((output, axis))
                    self._bound.setdefault((output, axis), "it shares a constant")
                else:
                    self._ties.tie((name, operand_axis), (output, axis))
        return True

    def _tie_product(self, index: int, node: onnx.NodeProto) -> bool:
        """Tie the first operand to the output; the other operand cannot be scaled.

        A constant with a value for each channel can absorb a factor.
        """
        first, second = node.input
        output = node.output[0]
        if first == second:
            return False
        if node.op_type == "Mul" and self._view.is_constant(first):
            first, second = second, first
        if self._view.is_constant(first) or self._view.shapes[first] != self._view.shapes[output]:
            # A constant dividend would have to absorb the factor of the output.
            return False
        # Mul by a constant of ones per channel, as in `restorers`: its channels can absorb factors.
        shape, operand_shape = self._view.shapes[output], self._view.shapes[second]
        axes = dict(enumerate(range(len(shape))))
        if (
            node.op_type == "Mul"
            and self._view.is_constant(second)
            and self._has_single_reader(second)
        ):
            for axis, size in enumerate(operand_shape):
                # One value for all channels absorbs no factor of a single one.
                if size == 1:
                    continue
                position = axis + len(shape) - len(operand_shape)
                reader = Reader(index, second, axis, channel_scales=True)
                self._readers.append(((first, position), reader))
                self._makers.append(((output, position), index, [(second, axis)]))
                for at in ((first, position), (output, position)):
                    self._ties.root(at)
                del axes[position]
            for axis in axes:
                self._ties.tie((first, axis), (output, axis))
            return True
        self._bind(second, f"{node.op_type} reads it")
        return self._tie_through(first, output, axes)

    def _tie_normalization(self, index: int, node: onnx.NodeProto) -> bool:
        source, *constants = filter(None, node.input)
        output = node.output[0]
        last = len(self._view.shapes[output]) - 1
        last_axis_only = attribute(node, "axis", -1) in (-1, last)
        if not last_axis_only:
            return False
        for name in constants:
            if not self._view.is_constant(name) or not self._has_single_reader(name):
                return False
        self._bind(source, "LayerNormalization reads it")
        self._bind(output, "LayerNormalization makes it", (last,))
        self._makers.append(((output, last), index, [(name, 0) for name in constants]))
        return True

    def _tie_layer(self, index: int, node: onnx.NodeProto) -> bool:
        shapes = self._view.shapes
        source, weight, *biases = filter(None, node.input)
        output = node.output[0]
        if not all(map(self._view.is_constant, biases)) or attribute(node, "transA", 0):
            return False
        shape = shapes[weight]
        conv = node.op_type == "Conv"
        if not conv and len(shape) != 2:
            return False
        groups = attribute(node, "group", 1)
        axis = int(not (conv or attribute(node, "transB", 0)))
        # Channels are axis 1 of a convolution's input and output, and the last axis otherwise.
        channel_axis = output_axis = 1
        if not conv:
            channel_axis, output_axis = len(shapes[source]) - 1, len(shapes[output]) - 1
        # In a depthwise convolution row j of the weights reads channel j and gives channel j.
        depthwise = conv and groups == shape[0] and shape[1] == 1
        # A bias (8,) of 8 outputs absorbs their factors; a (1,) that is broadcast cannot.
        one_bias_per_output = all(shapes[bias] == (shape[axis],) for bias in biases)
        self._bind(source, f"{node.op_type} adds it up", (channel_axis,))
        self._bind(output, f"{node.op_type} makes it", (output_axis,))
        if not self._has_single_reader(weight) or (conv and groups != 1 and not depthwise):
            reason = "its weights have several readers"
            if groups != 1:
                reason = "grouped convolution"
            for at in ((source, channel_axis), (output, output_axis)):
                self._ties.root(at)
                self._bound.setdefault(at, reason)
            return True
        reader = Reader(index, weight, 0 if depthwise else 1 - axis, depthwise)
        self._readers.append(((source, channel_axis), reader))
        self._ties.root((source, channel_axis))
        self._ties.root((output, output_axis))
        if one_bias_per_output and all(map(self._has_single_reader, biases)):
            constants = [(weight, axis), *((bias, 0) for bias in biases)]
            self._makers.append(((output, output_axis), index, constants))
        else:
            self._bound.setdefault(
                (output, output_axis), "its bias has another shape, or several readers"
            )
        return True

    def _has_single_reader(self, name: str) -> bool:
        """Return True if only one node reads a constant, as only one of its inputs."""
        reader = self._view.only_reader(name)
        return reader is not None and list(self._view.nodes[reader].input).count(name) == 1


__all__ = ["Classes", "Reader", "Scalable"]
