"""A float32 graph as `half` sees it, before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from edgepack.chain.graphs.view import GraphView, attribute
from edgepack.chain.half import operators

# The first opset in which Q and DQ take fp16.
SCALES_OPSET = 19


@dataclass(frozen=True)
class Kept:
    """A node that stays float32.

    Attributes:
        name: of the node.
        operator: its type.
        reason: what speaks against fp16, with the number that was measured.
        value: that number; None where the reason is none of range.
    """

    name: str
    operator: str
    reason: str
    value: float | None = None


def title(node: onnx.NodeProto, index: int) -> str:
    """The name of a node, or its type and place where it has none."""
    return node.name or f"{node.op_type}_{index}"


class Graph:
    """The nodes of a graph by what half can do with them.

    Attributes:
        view: of the graph.
        floats: names of all float32 tensors that are no constants.
        opset: of the graph.
        integer: indices of Q/DQ nodes and of what integer kernels take together with them.
        candidates: indices of the nodes that could become fp16.
        rest: of the other nodes that compute in float32, the reason.
    """

    def __init__(
        self, view: GraphView, floats: Collection[str], opset: int, keep: Collection[str]
    ) -> None:
        self.view, self.floats, self.opset = view, floats, opset
        self.integer = frozenset(self._integer())
        self.candidates: list[int] = []
        self.rest: dict[int, Kept] = {}
        for index, node in enumerate(view.nodes):
            if not self._computes(index) or self._as_it_is(index):
                continue
            reason = self._against(index, keep)
            if reason:
                self.rest[index] = Kept(title(node, index), node.op_type, reason)
            else:
                self.candidates.append(index)

    def indifferent(self, index: int) -> bool:
        """Whether a node takes a float of either type as it comes, and makes none."""
        node = self.view.nodes[index]
        return node.op_type in operators.READERS or (
            node.op_type == "Cast" and node.output[0] not in self.floats
        )

    def _computes(self, index: int) -> bool:
        """Whether a node reads or makes float32 in a way that its type matters to."""
        node = self.view.nodes[index]
        if self.indifferent(index) or node.op_type == "Constant":
            return False
        return bool(self.inputs(index)) or any(name in self.floats for name in node.output)

    def _against(self, index: int, keep: Collection[str]) -> str:
        node = self.view.nodes[index]
        if title(node, index) in keep:
            return "kept by name"
        if set(attribute(node, "activations", ())) - {b"Sigmoid", b"Tanh"}:
            return "its activations are not bounded"
        return operators.why_not(node.domain, node.op_type)

    def _as_it_is(self, index: int) -> bool:
        """Before opset 19 the scales of Q and DQ, and so what is between them, are float32."""
        return index in self.integer and self.opset < SCALES_OPSET

    def _integer(self) -> Iterator[int]:
        """Q, DQ, layers with weights behind DQ, and what has DQ before it and Q behind it."""
        view = self.view
        quantizers = {
            i for i, node in enumerate(view.nodes) if node.op_type in operators.QUANTIZERS
        }
        yield from quantizers
        for index, node in enumerate(view.nodes):
            if index in quantizers or node.op_type not in operators.HALF:
                continue
            makers = [view.producer.get(name) for name in node.input if name in self.floats]
            fed = [m for m in makers if m is not None and m in quantizers]
            weighted = node.op_type in operators.LAYERS and len(makers) > 1 and makers[1] in fed
            readers = [r for name in node.output for r in view.readers.get(name, [])]
            wanted = bool(readers) and all(r in quantizers for r in readers)
            if fed and (weighted or (wanted and len(fed) == len(makers))):
                yield index

    def inputs(self, index: int) -> list[str]:
        """The float32 inputs of a node that become fp16 with it, constants among them."""
        node = self.view.nodes[index]
        fixed = operators.FLOAT_INPUTS.get(node.op_type, ())
        return [
            name
            for place, name in enumerate(node.input)
            if place not in fixed and (name in self.floats or self._float_constant(name))
        ]

    def _float_constant(self, name: str) -> bool:
        tensor = self.view.initializers.get(name)
        return (
            tensor is not None
            and tensor.data_type == onnx.TensorProto.FLOAT
            and self.view.is_constant(name)
        )

    def constants(self, index: int) -> list[str]:
        """The float32 constants that a node reads."""
        return [name for name in self.inputs(index) if name not in self.floats]

    def touched(self, index: int) -> list[str]:
        """The float32 tensors that a node reads and makes, constants aside."""
        node = self.view.nodes[index]
        return [
            name
            for name in dict.fromkeys((*self.inputs(index), *node.output))
            if name in self.floats
        ]

    def angle(self, index: int) -> str:
        """What a node takes the sine or cosine of; "" for other nodes."""
        node = self.view.nodes[index]
        return str(node.input[0]) if node.op_type in operators.ANGLES else ""

    def divisor(self, index: int) -> str:
        """What a node divides by; "" where it does not."""
        node = self.view.nodes[index]
        if node.op_type == "Pow":
            exponent = self.view.constant(node.input[1])
            return str(node.input[0]) if exponent is not None and (exponent < 0).any() else ""
        place = operators.DIVISORS.get(node.op_type)
        return "" if place is None else str(node.input[place])

    def divisors(self) -> set[str]:
        """Measured tensors that a candidate divides by."""
        return {self.divisor(index) for index in self.candidates} & set(self.floats)
