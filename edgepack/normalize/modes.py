"""Detection of graphs exported in training mode, and of quantized graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgepack.normalize.order import walk_graphs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_INTEGER = ("QLinear", "DynamicQuantize")
_INTEGER_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QGemm", "QAttention",
     "MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4", "QMoE"}
)  # fmt: skip


def integer_operators(model: ModelProto) -> tuple[str, ...]:
    """Return the operators that only a quantized model has, without duplicates."""
    kinds = {str(node.op_type) for node in _nodes(model)}
    return tuple(sorted(k for k in kinds if k in _INTEGER_OPERATORS or k.startswith(_INTEGER)))


def batch_dependent(model: ModelProto) -> tuple[str, ...]:
    """Return the names of BatchNormalization nodes that use the statistics of the batch."""
    opset = default_opset(model)
    return tuple(
        str(node.name or node.output[0])
        for node in _nodes(model)
        if node.op_type == "BatchNormalization" and _trains(node, opset)
    )


def random_dropouts(model: ModelProto) -> tuple[str, ...]:
    """Return the names of Dropout nodes that drop values at random."""
    from onnx import numpy_helper

    opset = default_opset(model)
    constants: dict[str, Any] = {}
    for graph in walk_graphs(model.graph):
        constants.update({tensor.name: tensor for tensor in graph.initializer})
    for node in _nodes(model):
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.name == "value":
                constants[node.output[0]] = attribute.t

    def value(node: NodeProto, index: int) -> float | None:
        name = node.input[index] if index < len(node.input) else ""
        if name not in constants:
            return None
        return float(numpy_helper.to_array(constants[name]))

    def draws(node: NodeProto) -> bool:
        # Before opset 7 an attribute selects the mode; since 12 the third input does, and the
        # second is the share of values to drop. In between, Dropout never drops.
        if opset < 7:
            return not _integer(node, "is_test", 0)
        return bool(opset >= 12 and value(node, 2) and value(node, 1) != 0)

    dropouts = (node for node in _nodes(model) if node.op_type == "Dropout")
    return tuple(str(node.name or node.output[0]) for node in dropouts if draws(node))


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in walk_graphs(model.graph):
        yield from graph.node


def default_opset(model: ModelProto) -> int:
    """Return the version of the default operator set that the model imports, 1 without one."""
    versions = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")]
    return int(max(versions, default=1))


def _trains(node: NodeProto, opset: int) -> bool:
    # Between opsets 7 and 13 the mode shows in the outputs: running statistics are updated as well.
    if opset >= 14:
        return bool(_integer(node, "training_mode", 0))
    if opset < 7:
        return not _integer(node, "is_test", 0)
    return len([name for name in node.output if name]) > 1


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
