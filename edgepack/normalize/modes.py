"""Detection of graphs exported in training mode, and of quantized graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.onnx_tools.attributes import attribute, constant_value
from edgepack.onnx_tools.limits import default_opset
from edgepack.onnx_tools.operators import is_quantized
from edgepack.onnx_tools.walk import nodes_of, walk_graphs, walk_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def integer_operators(model: ModelProto) -> tuple[str, ...]:
    """Return the operators that only a quantized model has, without duplicates."""
    kinds = {str(node.op_type) for node in walk_nodes(model.graph)}
    return tuple(sorted(filter(is_quantized, kinds)))


def batch_dependent(model: ModelProto) -> tuple[str, ...]:
    """Return the names of BatchNormalization nodes that use the statistics of the batch."""
    opset = default_opset(model)
    names: list[str] = []
    for node in nodes_of(model.graph, "BatchNormalization"):
        if _trains(node, opset):
            names.append(str(node.name or node.output[0]))
    return tuple(names)


def random_dropouts(model: ModelProto) -> tuple[str, ...]:
    """Return the names of Dropout nodes that drop values at random."""
    from onnx import numpy_helper

    opset = default_opset(model)
    constants: dict[str, TensorProto] = {}
    for graph in walk_graphs(model.graph):
        for initializer in graph.initializer:
            constants[initializer.name] = initializer
    for node in nodes_of(model.graph, "Constant"):
        tensor = constant_value(node)
        if tensor is not None:
            constants[node.output[0]] = tensor

    def value(node: NodeProto, index: int) -> float | None:
        name = node.input[index] if index < len(node.input) else ""
        if name not in constants:
            return None
        return float(numpy_helper.to_array(constants[name]))

    def draws(node: NodeProto) -> bool:
        # Before opset 7 an attribute selects the mode; since 12 the third input does, and the
        # second is the share of values to drop. In between, Dropout never drops.
        if opset < 7:
            return not attribute(node, "is_test", 0)
        return bool(opset >= 12 and value(node, 2) and value(node, 1) != 0)

    names: list[str] = []
    for node in nodes_of(model.graph, "Dropout"):
        if draws(node):
            names.append(str(node.name or node.output[0]))
    return tuple(names)


def _trains(node: NodeProto, opset: int) -> bool:
    # Between opsets 7 and 13 the mode shows in the outputs: running statistics are updated as well.
    if opset >= 14:
        return bool(attribute(node, "training_mode", 0))
    if opset < 7:
        return not attribute(node, "is_test", 0)
    return any(node.output[1:])
