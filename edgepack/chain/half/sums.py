"""Bounds on the partial sums of a node: the node itself, on absolute values.

|x1 w1| + |x2 w2| + ... bounds every partial sum of x1 w1 + x2 w2 + ..., whatever the order in
which a kernel adds them up, and in however many parts. onnxruntime's CUDA provider adds up in
float32; TensorRT may add up in fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import onnx
from onnx import helper

from edgepack.chain.graphs.view import GraphView, attribute

RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass
class Sum:
    """How the largest partial sum of one node is measured.

    Attributes:
        what: what is summed up, as the subject of "... reaches 1e5".
        output: the tensor whose largest value it is.
        factor: that value times this.
        nodes: what makes the tensor.
    """

    what: str
    output: str = ""
    factor: float = 1.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)


def partial_sum(view: GraphView, index: int, opset: int) -> Sum | None:
    """The bound of a node; None where it sums up nothing that its output does not show.

    Args:
        view: of the graph that the node is in.
        index: of the node.
        opset: of the graph.
    """
    node = view.nodes[index]
    make = _BOUNDS.get(node.op_type)
    if make is None:
        return None
    bound = _Bound(node, f"edgepack_sum_{index}", opset)
    make(bound)
    return bound.sum


class _Bound:
    """Builds the nodes of one bound. The methods of an operator set `sum.what` and its output."""

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
        """A reduction, its axes an attribute or an input as the opset has it."""
        as_input = self.opset >= (13 if kind == "ReduceSum" else 18)
        if not as_input and isinstance(axes, list):
            return self.op(kind, source, keepdims=keep, axes=axes)
        name = self.number(onnx.TensorProto.INT64, axes) if isinstance(axes, list) else axes
        return self.op(kind, source, name, keepdims=keep)

    def absolute(self) -> None:
        """The node itself, on absolute values; what is no float stays."""
        inputs = [self.op("Abs", name) if name else "" for name in self.node.input]
        output = f"{self.prefix}_absolute"
        copy = onnx.NodeProto()
        copy.CopyFrom(self.node)
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
        self.absolute()
        self.sum.factor = float(prod(attribute(self.node, "kernel_shape")))
        copy = self.sum.nodes[-1]
        kept = [item for item in copy.attribute if item.name != "count_include_pad"]
        del copy.attribute[:]
        copy.attribute.extend([*kept, helper.make_attribute("count_include_pad", 1)])

    def everywhere(self) -> None:
        self.op("GlobalLpPool", self.node.input[0], p=1)

    def reduction(self) -> None:
        squares = self.node.op_type in ("ReduceL2", "ReduceSumSquare")
        if squares:
            self.sum.what = "its sum of squares"
        source = self.node.input[0]
        source = self.op("Mul", source, source) if squares else self.op("Abs", source)
        given = list(self.node.input)[1:2]
        axes: str | list[int] = given[0] if given and given[0] else attribute(self.node, "axes", [])
        if axes:
            self.reduced("ReduceSum", source, axes)
        elif not attribute(self.node, "noop_with_empty_axes", 0):
            self.op("ReduceSum", source, keepdims=0)

    def variance(self) -> None:
        """The mean of squares: no less than the variance, and than the mean of a RMSNorm."""
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
        # Rows of all that is normalized together: (rows, values).
        self.reduced("ReduceMean", self.op("Flatten", squares, axis=axis), [1])

    def softmax(self) -> None:
        """exp(x - max) sums up to one over the largest probability."""
        self.sum.what = "its sum of exponentials"
        output = self.node.output[0]
        axis = attribute(self.node, "axis", -1)
        largest = self.reduced("ReduceMax", output, [axis])
        if self.node.op_type == "LogSoftmax":
            largest = self.op("Exp", largest)
        self.op("Reciprocal", largest)

    def recurrent(self) -> None:
        """|W x| + |R h| + |b|, with |h| <= 1 or what it starts from, beside the cell's growth.

        A gate lets at most its input through, so a cell grows by at most 1 with each step.
        """
        self.sum.what = "its gates or its cell"
        inputs = [*self.node.input, *[""] * 8]
        x, weights, recurrent, bias = inputs[0], inputs[1], inputs[2], inputs[3]
        initial = [self.op("ReduceMax", self.op("Abs", n), keepdims=0) for n in inputs[5:7] if n]
        start = self.op("Max", self.number(onnx.TensorProto.FLOAT, [1.0]), *initial)
        turned = self.op("Transpose", self.op("Abs", weights), perm=[0, 2, 1])
        wide = self.reduced("ReduceMax", turned, [0])
        gates = self.op("ReduceMax", self.op("MatMul", self.op("Abs", x), wide), keepdims=0)
        rows = self.reduced("ReduceSum", self.op("Abs", recurrent), [2])
        back = self.op("Mul", self.op("ReduceMax", rows, keepdims=0), start)
        total = self.op("Add", gates, back)
        if bias:
            both = self.op("ReduceMax", self.op("Abs", bias), keepdims=0)
            total = self.op("Add", total, self.op("Add", both, both))
        steps = self.op("Cast", self.op("Shape", x), to=onnx.TensorProto.FLOAT)
        cell = self.op("Add", start, self.op("ReduceMax", steps, keepdims=0))
        if self.node.op_type == "LSTM" and inputs[7]:
            peephole = self.op("ReduceMax", self.op("Abs", inputs[7]), keepdims=0)
            total = self.op("Add", total, self.op("Mul", peephole, cell))
        self.op("Max", total, cell)


_BOUNDS: dict[str, Callable[[_Bound], None]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "Sum"), _Bound.absolute),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum"), _Bound.reduction),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _Bound.variance),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _Bound.softmax),
    **dict.fromkeys(RECURRENT, _Bound.recurrent),
    "AveragePool": _Bound.average,
    "GlobalAveragePool": _Bound.everywhere,
    "InstanceNormalization": _Bound.variance,
    "ReduceSumSquare": _Bound.reduction,
}
