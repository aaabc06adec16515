"""Casts of graphs with float16, bfloat16 or float64 weights to float32.

Quantization reads float32; on the CPU, onnxruntime computes float16 in float32 and does not support
bfloat16. The inputs and outputs of the graph keep their types, except bfloat16, which numpy does
not have and float32 represents exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from edgepack.onnx_tools.attributes import attribute, constant_value
from edgepack.onnx_tools.copies import copied, replace_items
from edgepack.onnx_tools.names import renamed, unused, value_names
from edgepack.onnx_tools.operators import operator
from edgepack.onnx_tools.walk import Named, fed_inputs, names_of, walk_graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_NAMES = {10: "float16", 16: "bfloat16", 11: "float64"}
_BFLOAT16, _FLOAT = 16, 1
# Attributes that declare the type of a node's output.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def weight_types(model: ModelProto) -> tuple[str, ...]:
    """Return the types among float16, bfloat16 and float64 that occur as weights of layers."""
    # Weights may reach their layer through constants, casts and transposes: a MatMul that reads
    # Transpose(Constant of float16) has float16 weights.
    types: set[int] = set()
    for graph in walk_graphs(model.graph):
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                constants |= dict.fromkeys(node.output, _constant_type(node))
            elif _passes_on(node) and node.input[0] in constants:
                constants[node.output[0]] = _output_type(node, constants[node.input[0]])
            for index in operator(node.op_type).weights:
                if index < len(node.input) and node.input[index] in constants:
                    types.add(constants[node.input[index]])
    return _in_order(_NAMES[number] for number in types & _NAMES.keys())


def types_to_promote(model: ModelProto, for_passes: bool) -> tuple[str, ...]:
    """Return the types of a model that must be promoted to float32.

    Args:
        model: an `onnx.ModelProto`.
        for_passes: True if passes of the chain read the graph. Without passes, float16 stays,
            because engines run it.
    """
    weights = set(weight_types(model))
    if not for_passes:
        weights.discard("float16")
    if _uses_bfloat16(model):
        weights.add("bfloat16")
    return _in_order(weights)


def _in_order(types: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(types, key=list(_NAMES.values()).index))


def _uses_bfloat16(model: ModelProto) -> bool:
    # onnxruntime has no bfloat16 on the CPU, so a single value or Cast is enough to promote.
    for graph in walk_graphs(model.graph):
        types: set[int] = set()
        for tensor in graph.initializer:
            types.add(tensor.data_type)
        for value in [*graph.input, *graph.output]:
            types.add(value.type.tensor_type.elem_type)
        if _BFLOAT16 in types:
            return True
        for node in graph.node:
            if attribute(node, "to") == _BFLOAT16:
                return True
    return False


def promote_floats(model: ModelProto, types: Collection[str]) -> ModelProto:
    """Return a copy of a model that has float32 in place of `types`.

    Args:
        model: an `onnx.ModelProto` without functions of its own.
        types: "float16", "bfloat16", "float64".
    """
    promoted = copied(model)
    numbers = {number for number, name in _NAMES.items() if name in types}
    # Types of inputs and outputs before the promotion, which changes them like any other value.
    # An input may be an output at the same time, and then gets one Cast only.
    edges: dict[str, int] = {}
    for value in _interface(promoted):
        edges[value.name] = int(value.type.tensor_type.elem_type)
    for graph in walk_graphs(promoted.graph):
        _promote_graph(graph, numbers)
    inputs = names_of(promoted.graph.input)
    # For example a float16 output "y" stays float16, behind Cast("y_float32") -> "y".
    restored = numbers - {_BFLOAT16}
    for value in _interface(promoted):
        if edges[value.name] in restored:
            value.type.tensor_type.elem_type = edges[value.name]
    for name, number in edges.items():
        if number in restored:
            _cast_at_edge(promoted.graph, name, number, name in inputs)
    return promoted


def _passes_on(node: NodeProto) -> bool:
    """Return True if a node outputs the values of its input, perhaps as another type."""
    return node.op_type == "Cast" or node.op_type in ("Identity", "Transpose")


def _constant_type(node: NodeProto) -> int:
    tensor = constant_value(node)
    if tensor is None:
        return 0
    return int(tensor.data_type)


def _output_type(node: NodeProto, number: int) -> int:
    return int(attribute(node, "to", number))


def _interface(model: ModelProto) -> list[ValueInfoProto]:
    return [*fed_inputs(model.graph), *model.graph.output]


def _promote_graph(graph: GraphProto, numbers: set[int]) -> None:
    # Stale types of inner values would contradict the new ones.
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in numbers:
            value.type.tensor_type.elem_type = _FLOAT
    for tensor in graph.initializer:
        _promote_tensor(tensor, numbers)
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                _promote_tensor(item.t, numbers)
            # Otherwise Cast(to=float16) would bring the old type back.
            if item.name in _TYPE_ATTRIBUTES and item.i in numbers:
                item.i = _FLOAT


def _promote_tensor(tensor: TensorProto, numbers: set[int]) -> None:
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type in numbers:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _cast_at_edge(graph: GraphProto, name: str, number: int, is_input: bool) -> None:
    """Insert a Cast behind an input or in front of an output that keeps its type.

    For example an input "x" of float16 is followed by Cast(x) -> "x_float32", and all readers of
    "x" read that instead.
    """
    from onnx import helper

    inside = unused(f"{name}_float32", value_names(graph))
    mapping = {name: inside}
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = renamed(node.input, mapping)
            if not is_input:
                node.output[:] = renamed(node.output, mapping)
        # Subgraphs may return the value; an output of the main graph keeps its name.
        if inner is not graph:
            _rename(inner.output, name, inside)
    _rename(graph.initializer, name, inside)
    label = f"{inside}_cast"
    if is_input:
        nodes = [helper.make_node("Cast", [name], [inside], name=label, to=_FLOAT), *graph.node]
    else:
        nodes = [*graph.node, helper.make_node("Cast", [inside], [name], name=label, to=number)]
    replace_items(graph.node, nodes)


def _rename(values: Iterable[Named], old: str, new: str) -> None:
    for value in values:
        if value.name == old:
            value.name = new
