"""Find axes of a graph's tensors that can be permuted together.

A permutation of a layer's output channels changes nothing if all their readers are permuted alike,
up to the next layer whose weights sum over them. So the axes of tensors, weights included, fall
into classes with one order each. The order of a class is free if none of its axes is visible
outside the graph.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from edgepack.onnx_tools.axes import Axis, Ties
from edgepack.onnx_tools.operators import Trait, operator, with_int8
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.onnx_tools.walk import is_standard, names_of


class Channels:
    """Classes of axes of one graph that share an order.

    Example: in Conv a -> Relu -> Conv b the axes (a.weight, 0), (a.bias, 0), (relu, 1) and
    (b.weight, 1) form one class, and permuting the three constants changes nothing.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._ties = Ties()
        # Axes whose order is visible and cannot be undone by permuting constants.
        self._fixed: set[Axis] = set()
        outside = names_of(view.graph.input) | view.outputs | view.captured
        for name in outside:
            self._fix(name)
        for node in view.nodes:
            if not self._tie_node(node):
                for name in (*node.input, *node.output):
                    self._fix(name)

    def free(self) -> dict[Axis, list[Axis]]:
        """Map every axis whose order is free to the axes of constants to permute with it."""
        classes: dict[Axis, list[Axis]] = {}
        for axis in self._ties:
            classes.setdefault(self._ties.root(axis), []).append(axis)
        result = {}
        for members in classes.values():
            if not self._fixed.intersection(members):
                constants = [axis for axis in members if axis[0] in self._view.initializers]
                result.update(dict.fromkeys(members, constants))
        return result

    def _fix(self, name: str, but: Collection[int] = ()) -> None:
        """Mark the axes of a tensor as fixed, except some."""
        for axis in range(len(self._view.shapes.get(name, ()))):
            if axis not in but:
                self._ties.root((name, axis))
                self._fixed.add((name, axis))

    def _tie_node(self, node: onnx.NodeProto) -> bool:
        """Tie the axes that an operator keeps in order; False if its ties are unknown."""
        shapes = self._view.shapes
        has_shapes = shapes.keys() >= set(filter(None, (*node.input, *node.output)))
        if not has_shapes or not is_standard(node):
            return False
        traits = operator(node.op_type).traits
        if Trait.ELEMENTWISE in traits:
            self._tie_elementwise(node)
            return True
        if Trait.POOLS in traits:
            return len(node.output) == 1 and self._tie_through(node, 1, 1)
        if Trait.FLATTENS in traits:
            source, output = shapes[node.input[0]], shapes[node.output[0]]
            # Channels with one value each stay channels; with more, values of a channel would be
            # spread over several columns.
            flat = len(output) == 2 <= len(source) and set(source[2:]) <= {1}
            same = flat and isinstance(source[1], int) and source[1] == output[1]
            for name in node.input[1:]:
                self._fix(name)
            return same and self._tie_through(node, 1, 1)
        if node.op_type == "LayerNormalization":
            last = len(shapes[node.input[0]]) - 1
            if len(node.output) > 1 or attribute(node, "axis", -1) not in (-1, last):
                return False
            for name in filter(None, node.input[1:]):
                self._tie_broadcast(name, node.output[0])
            return self._tie_through(node, last, last)
        if node.op_type == "Gather":
            self._tie_gathered(node)
            return True
        return self._tie_weights(node)

    def _tie_gathered(self, node: onnx.NodeProto) -> None:
        """Tie all axes except the one that the indices select from."""
        data, indices = node.input
        output, rank = node.output[0], len(self._view.shapes[data])
        gathered, more = attribute(node, "axis", 0) % rank, len(self._view.shapes[indices]) - 1
        data_axes = list(range(rank))
        data_axes.remove(gathered)
        # Gather from (10, 4, 6) along axis 1 with indices (2, 3) gives (10, 2, 3, 6): axis 0 stays
        # axis 0, and axis 2 becomes axis 3.
        output_axes = [*range(gathered), *range(gathered + 1 + more, rank + more)]
        for axis, target in zip(data_axes, output_axes, strict=True):
            self._ties.tie((data, axis), (output, target))
        self._fix(data, but=data_axes)
        self._fix(output, but=output_axes)
        self._fix(indices)

    def _tie_weights(self, node: onnx.NodeProto) -> bool:
        """Tie the axes of operators with a matrix of weights."""
        shapes, inputs = self._view.shapes, list(node.input)
        if node.op_type not in with_int8("layer"):
            return False
        if not all(map(self._view.is_constant, filter(None, inputs[1:]))):
            return False
        if node.op_type == "Conv":
            return self._tie_convolution(node)
        if len(shapes[inputs[1]]) != 2 or attribute(node, "transA", 0):
            return False
        # Gemm weights are (inputs, outputs), or (outputs, inputs) with transB: the axis `columns`
        # counts outputs, the other one inputs.
        columns = int(not attribute(node, "transB", 0))
        source = inputs[0], len(shapes[inputs[0]]) - 1
        output = node.output[0], len(shapes[node.output[0]]) - 1
        self._ties.tie((inputs[1], 1 - columns), source)
        self._ties.tie((inputs[1], columns), output)
        for name in filter(None, inputs[2:]):
            self._tie_broadcast(name, output[0])
        self._fix(source[0], but=(source[1],))
        self._fix(output[0], but=(output[1],))
        return True

    def _tie_convolution(self, node: onnx.NodeProto) -> bool:
        """Tie the channels of a convolution; False for a grouped one, unless it is depthwise."""
        source, weights, *biases = filter(None, node.input)
        outputs, inputs = self._view.shapes[weights][:2]
        groups = attribute(node, "group", 1)
        output = (node.output[0], 1)
        if groups == outputs and inputs == 1:
            # A channel multiplier above 1 would map one input channel to several outputs.
            if self._view.shapes[source][1] != outputs:
                return False
            self._ties.tie((source, 1), output)
        elif groups == 1:
            self._ties.tie((weights, 1), (source, 1))
        else:
            return False
        self._ties.tie((weights, 0), output)
        for name in biases:
            self._ties.tie((name, 0), output)
        for name in (source, output[0]):
            self._fix(name, but=(1,))
        return True

    def _tie_through(self, node: onnx.NodeProto, source: int, target: int) -> bool:
        """Tie one input axis to one output axis and fix all others."""
        self._ties.tie((node.input[0], source), (node.output[0], target))
        self._fix(node.input[0], but=(source,))
        self._fix(node.output[0], but=(target,))
        return True

    def _tie_elementwise(self, node: onnx.NodeProto) -> None:
        for name in filter(None, node.input):
            self._tie_broadcast(name, node.output[0])

    def _tie_broadcast(self, name: str, output: str) -> None:
        """Tie the axes of an operand to the last axes of the result."""
        shape, result = self._view.shapes[name], self._view.shapes[output]
        for axis, size in enumerate(shape):
            if size != 1:
                self._ties.tie((name, axis), (output, axis + len(result) - len(shape)))


__all__ = ["Axis", "Channels"]
