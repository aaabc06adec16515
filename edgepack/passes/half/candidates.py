"""Sort the nodes of a float32 graph into fp16 candidates and others, before measuring."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass

import onnx

from edgepack.onnx_tools.operators import Trait, having, operator
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.passes.half.operators import why_not

# The first opset in which Q and DQ take fp16.
SCALES_OPSET = 19


@dataclass(frozen=True)
class FloatNode:
    """A node that stays float32.

    Attributes:
        name: of the node.
        operator: its type.
        reason: why it cannot be fp16, with the measured number if there is one.
        value: that number; None if the reason is not a range.
    """

    name: str
    operator: str
    reason: str
    value: float | None = None


def title(node: onnx.NodeProto, index: int) -> str:
    """Return the name of a node, or its type and position if it has none."""
    return node.name or f"{node.op_type}_{index}"


class Graph:
    """Nodes of a graph, sorted by what `half` can do with them.

    Attributes:
        view: of the graph.
        floats: names of all float32 tensors except constants.
        opset: of the graph.
        integer: indices of Q/DQ nodes and of nodes that integer kernels fuse with them.
        candidates: indices of the nodes that could become fp16.
        excluded: by index, the other nodes that compute in float32, with the reason.
    """

    def __init__(
        self, view: GraphView, floats: Set[str], opset: int, keep: Collection[str]
    ) -> None:
        self.view, self.floats, self.opset = view, floats, opset
        self.integer = frozenset(self._integer())
        self.candidates: list[int] = []
        self.excluded: dict[int, FloatNode] = {}
        for index, node in enumerate(view.nodes):
            # Shape, Constant and integer arithmetic have no float type to choose.
            if not self._computes_in_float(index) or self._stays_quantized(index):
                continue
            reason = self._reason_against(index, keep)
            if reason:
                self.excluded[index] = FloatNode(title(node, index), node.op_type, reason)
            else:
                self.candidates.append(index)

    def accepts_either_type(self, index: int) -> bool:
        """Return True if a node reads fp16 or float32 alike and outputs neither."""
        node = self.view.nodes[index]
        return node.op_type in having(Trait.READS_ANY_FLOAT) or (
            node.op_type == "Cast" and node.output[0] not in self.floats
        )

    def _computes_in_float(self, index: int) -> bool:
        """Return True if a node reads or outputs float32 and has to have one of the types."""
        node = self.view.nodes[index]
        if self.accepts_either_type(index) or node.op_type == "Constant":
            return False
        return bool(self.inputs(index)) or not self.floats.isdisjoint(node.output)

    def _reason_against(self, index: int, keep: Collection[str]) -> str:
        node = self.view.nodes[index]
        if title(node, index) in keep:
            return "kept by name"
        if set(attribute(node, "activations", ())) - {b"Sigmoid", b"Tanh"}:
            return "its activation functions are unbounded"
        return why_not(node)

    def _stays_quantized(self, index: int) -> bool:
        """Return True for a quantized node before opset 19, where Q and DQ take float32 only."""
        return index in self.integer and self.opset < SCALES_OPSET

    # In the pattern DQ, DQ -> Gemm -> Relu -> Q the Gemm is fused, since its weights come from a
    # DQ. The Relu is not: none of its inputs comes from one. An Add between two DQ and a Q is fused
    # too; if one of its inputs is float, no integer kernel takes it.
    def _integer(self) -> Iterator[int]:
        """Yield Q, DQ, layers whose weights come from DQ, and nodes between a DQ and a Q."""
        view = self.view
        quantizers: set[int] = set()
        for index, node in enumerate(view.nodes):
            if node.op_type in having(Trait.QUANTIZES):
                quantizers.add(index)
        yield from quantizers
        for index, node in enumerate(view.nodes):
            if index in quantizers or node.op_type not in having(Trait.HALF):
                continue
            makers = [view.producer.get(name) for name in node.input if name in self.floats]
            dequantized = [m for m in makers if m is not None and m in quantizers]
            weighted = (
                operator(node.op_type).weights and len(makers) > 1 and makers[1] in dequantized
            )
            readers: list[int] = []
            for name in node.output:
                readers += view.readers.get(name, [])
            requantized = bool(readers) and quantizers.issuperset(readers)
            if dequantized and (weighted or (requantized and len(dequantized) == len(makers))):
                yield index

    def inputs(self, index: int) -> list[str]:
        """List the float32 inputs of a node that become fp16 with it, constants included."""
        node = self.view.nodes[index]
        fixed = operator(node.op_type).float_slots
        names: list[str] = []
        for slot, name in enumerate(node.input):
            if slot not in fixed and (name in self.floats or self._float_constant(name)):
                names.append(name)
        return names

    def _float_constant(self, name: str) -> bool:
        tensor = self.view.initializers.get(name)
        return (
            tensor is not None
            and tensor.data_type == onnx.TensorProto.FLOAT
            and self.view.is_constant(name)
        )

    def constants(self, index: int) -> list[str]:
        """List the float32 constants that a node reads."""
        return [name for name in self.inputs(index) if name not in self.floats]

    def float_tensors(self, index: int) -> list[str]:
        """List the float32 inputs and outputs of a node, except constants."""
        names = dict.fromkeys((*self.inputs(index), *self.view.nodes[index].output))
        return [name for name in names if name in self.floats]

    def angle(self, index: int) -> str:
        """Return the tensor whose sine or cosine a node computes; "" for other nodes."""
        node = self.view.nodes[index]
        if node.op_type in having(Trait.ANGLES):
            return str(node.input[0])
        return ""

    def divisor(self, index: int) -> str:
        """Return the tensor that a node divides by; "" if it divides by none."""
        node = self.view.nodes[index]
        if node.op_type == "Pow":
            # x ** -2 is 1 / x ** 2. An unknown exponent is taken for positive.
            exponent = self.view.constant(node.input[1])
            if exponent is not None and (exponent < 0).any():
                return str(node.input[0])
            return ""
        slot = operator(node.op_type).divisor
        if slot is None:
            return ""
        return str(node.input[slot])

    def divisors(self) -> set[str]:
        """Return the measured tensors that candidates divide by."""
        return {self.divisor(index) for index in self.candidates} & set(self.floats)
