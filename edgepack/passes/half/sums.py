"""Bound the partial sums of a node by running the node on absolute values.

|x1 w1| + |x2 w2| + ... bounds every partial sum of x1 w1 + x2 w2 + ..., regardless of the order
and the number of parts in which a kernel adds. onnxruntime's CUDA provider accumulates in float32;
TensorRT may accumulate in fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import onnx
from onnx import helper

from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.operators import Bound, operator
from edgepack.onnx_tools.view import GraphView, attribute


@dataclass
class Sum:
    """Nodes that compute a bound on the partial sums of one node.

    Attributes:
        what: the summed quantity, as the subject of "... may reach 1e5".
        output: tensor whose largest value, times `factor`, is the bound.
        factor: of that value.
        nodes: nodes that compute the tensor.
    """

    what: str
    output: str = ""
    factor: float = 1.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)


def partial_sum(view: GraphView, index: int, opset: int) -> Sum | None:
    """Build the bound of a node; None if its sums never exceed its outputs.

    Args:
        view: of the graph that the node is in.
        index: of the node.
        opset: of the graph.
    """
    node = view.nodes[index]
    # The sums of a MatMul of (8, 1000) by (1000, 4) may reach 1e5 and cancel to 3 in the output.
    rule = operator(node.op_type).bound
    if rule is None:
        return None
    bound = _Bound(node, f"edgepack_sum_{index}", opset)
    _BOUNDS[rule](bound)
    return bound.sum


class _Bound:
    """Builds the nodes of one bound; one method per kind of operator."""

    def __init__(self, node: onnx.NodeProto, prefix: str, opset: int) -> None:
        self.node, self.prefix, self.opset = node, prefix, opset
        self.sum = Sum("its sums")

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.prefix}_{len(self.sum.nodes)}"
        self.sum.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        self.sum.output = output
        return output

    def number(self, kind: int, values: Sequence[float]) -> str:
        tensor = helper.make_tensor("value", kind, [len(values)], values)
        return self.op("Constant", value=tensor)

    def reduced(self, kind: str, source: str, axes: str | list[int], keep: int = 0) -> str:
        """Append a reduction, with axes as attribute or input depending on the opset."""
        if isinstance(axes, list):
            # ReduceSum takes its axes as an input from opset 13 on, other reductions from 18.
            if self.opset < {"ReduceSum": 13}.get(kind, 18):
                return self.op(kind, source, keepdims=keep, axes=axes)
            axes = self.number(onnx.TensorProto.INT64, axes)
        return self.op(kind, source, axes, keepdims=keep)

    def absolute(self) -> None:
        """Append the node itself, on absolute values.

        Example: y = Conv(x, w) becomes Conv(|x|, |w|).
        """
        # An absent optional input stays absent.
        inputs = [self.op("Abs", name) if name else "" for name in self.node.input]
        output = f"{self.prefix}_absolute"
        copy = copied(self.node)
        copy.name = ""
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.append(output)
        for item in copy.attribute:
            if item.name in ("alpha", "beta"):
                item.f = abs(item.f)
        self.sum.nodes.append(copy)
        self.sum.output = output

    def average(self) -> None:
        # The mean over a 3 x 3 window times 9 is the sum, provided that padding counts as well.
        self.absolute()
        self.sum.factor = float(prod(attribute(self.node, "kernel_shape")))
        copy = self.sum.nodes[-1]
        attributes = [item for item in copy.attribute if item.name != "count_include_pad"]
        del copy.attribute[:]
        copy.attribute.extend([*attributes, helper.make_attribute("count_include_pad", 1)])

    def global_sum(self) -> None:
        # With p = 1 the pool is the sum of absolute values over all positions.
        self.op("GlobalLpPool", self.node.input[0], p=1)

    def reduction(self) -> None:
        source = self.node.input[0]
        if operator(self.node.op_type).bound == "squares":
            self.sum.what = "its sum of squares"
            source = self.op("Mul", source, source)
        else:
            source = self.op("Abs", source)
        axis_inputs = list(self.node.input)[1:2]
        axes: str | list[int] = (
            axis_inputs[0] if axis_inputs and axis_inputs[0] else attribute(self.node, "axes", [])
        )
        if axes:
            self.reduced("ReduceSum", source, axes)
        elif not attribute(self.node, "noop_with_empty_axes", 0):
            self.op("ReduceSum", source, keepdims=0)

    def variance(self) -> None:
        """Append the mean of squares, which bounds the variance and the mean of an RMSNorm."""
        self.sum.what = "its variance"
        source = self.node.input[0]
        squares = self.op("Mul", source, source)
        if self.node.op_type == "InstanceNormalization":
            self.op("GlobalAveragePool", squares)
            return
        axis = attribute(self.node, "axis", -1)
        if axis == -1:
            self.reduced("ReduceMean", squares, [-1])
            return
        # (rows, values): values that are normalized together form a row.
        self.reduced("ReduceMean", self.op("Flatten", squares, axis=axis), [1])

    def softmax(self) -> None:
        """Append 1 / max(p): the sum of exp(x - max(x)) equals it."""
        self.sum.what = "its sum of exponentials"
        output = self.node.output[0]
        axis = attribute(self.node, "axis", -1)
        largest = self.reduced("ReduceMax", output, [axis])
        if self.node.op_type == "LogSoftmax":
            largest = self.op("Exp", largest)
        self.op("Reciprocal", largest)

    def recurrent(self) -> None:
        """Append |W x| + |R h| + |b|, and a bound on the cell; |h| is at most 1 or its start.

        A gate passes at most its input, so a cell grows by at most 1 per step: after n steps from
        a start of s it is at most s + n.
        """
        self.sum.what = "its gates or its cell"
        inputs = [*self.node.input, *[""] * 8]
        x, weights, recurrent, bias = inputs[0], inputs[1], inputs[2], inputs[3]
        initial = [self.op("ReduceMax", self.op("Abs", n), keepdims=0) for n in inputs[5:7] if n]
        start = self.op("Max", self.number(onnx.TensorProto.FLOAT, [1.0]), *initial)
        # |W x| is at most |x| times the largest |W| over the directions: with two directions,
        # W is (2, gates, inputs), `transposed` (2, inputs, gates) and `wide` (inputs, gates).
        transposed = self.op("Transpose", self.op("Abs", weights), perm=[0, 2, 1])
        wide = self.reduced("ReduceMax", transposed, [0])
        gates = self.op("ReduceMax", self.op("MatMul", self.op("Abs", x), wide), keepdims=0)
        # |R h| is at most the largest row sum of |R| times the largest |h|.
        rows = self.reduced("ReduceSum", self.op("Abs", recurrent), [2])
        state_sum = self.op("Mul", self.op("ReduceMax", rows, keepdims=0), start)
        total = self.op("Add", gates, state_sum)
        if bias:
            # B holds the biases of W and of R one after the other.
            both = self.op("ReduceMax", self.op("Abs", bias), keepdims=0)
            total = self.op("Add", total, self.op("Add", both, both))
        # The largest dimension of x (steps, batch, inputs) is at least the number of steps.
        steps = self.op("Cast", self.op("Shape", x), to=onnx.TensorProto.FLOAT)
        cell = self.op("Add", start, self.op("ReduceMax", steps, keepdims=0))
        if self.node.op_type == "LSTM" and inputs[7]:
            peephole = self.op("ReduceMax", self.op("Abs", inputs[7]), keepdims=0)
            total = self.op("Add", total, self.op("Mul", peephole, cell))
        self.op("Max", total, cell)


_BOUNDS: dict[Bound, Callable[[_Bound], None]] = {
    "absolute": _Bound.absolute,
    "average": _Bound.average,
    "global-sum": _Bound.global_sum,
    "reduction": _Bound.reduction,
    "squares": _Bound.reduction,
    "variance": _Bound.variance,
    "softmax": _Bound.softmax,
    "recurrent": _Bound.recurrent,
}
