"""Graphs whose weights are float16, bfloat16 or float64, cast to float32.

Quantization reads float32; onnxruntime computes float16 in float32 on the CPU and has no bfloat16
there at all. The inputs and outputs of the graph keep their types, except bfloat16, which numpy
does not have: float32 holds all of its values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgepack.normalize.order import walk_graphs

# Operators with weights, and which of their inputs these are.
_WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "DeformConv": (1,), "Gemm": (0, 1), "MatMul": (0, 1),
    "Einsum": (0, 1), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
_NAMES = {10: "float16", 16: "bfloat16", 11: "float64"}
_BFLOAT16, _FLOAT = 16, 1
# Attributes that state the type of what a node returns.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def weight_types(model: Any) -> tuple[str, ...]:
    """Return which of float16, bfloat16 and float64 the layers of a model hold weights in."""
    types: set[int] = set()
    for graph in walk_graphs(model.graph):
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                constants |= dict.fromkeys(node.output, _constant_type(node))
            elif node.op_type in ("Identity", "Transpose", "Cast") and node.input[0] in constants:
                constants[node.output[0]] = _returned(node, constants[node.input[0]])
            for index in _WEIGHTS.get(node.op_type, ()):
                if index < len(node.input) and node.input[index] in constants:
                    types.add(constants[node.input[index]])
    return tuple(name for number, name in _NAMES.items() if number in types)


def types_to_promote(model: Any, for_passes: bool) -> tuple[str, ...]:
    """Return which types of a model have to become float32.

    Args:
        model: an `onnx.ModelProto`.
        for_passes: whether passes of the chain read the graph. Without any, float16 stays:
            engines run it as it is.
    """
    weights = set(weight_types(model)) - (set() if for_passes else {"float16"})
    if _uses_bfloat16(model):
        weights.add("bfloat16")
    return tuple(name for name in _NAMES.values() if name in weights)


def _uses_bfloat16(model: Any) -> bool:
    for graph in walk_graphs(model.graph):
        if any(tensor.data_type == _BFLOAT16 for tensor in graph.initializer):
            return True
        values = [*graph.input, *graph.output]
        if any(value.type.tensor_type.elem_type == _BFLOAT16 for value in values):
            return True
        for node in graph.node:
            if any(a.name == "to" and a.i == _BFLOAT16 for a in node.attribute):
                return True
    return False


def promote_floats(model: Any, types: Collection[str]) -> Any:
    """Return a copy of a model in which every value of `types` is float32.

    Args:
        model: an `onnx.ModelProto` without functions of its own.
        types: "float16", "bfloat16", "float64".
    """
    import onnx

    promoted = onnx.ModelProto()
    promoted.CopyFrom(model)
    numbers = {number for number, name in _NAMES.items() if name in types}
    interface = [(value, int(value.type.tensor_type.elem_type)) for value in _interface(promoted)]
    for graph in walk_graphs(promoted.graph):
        _promote_graph(graph, numbers)
    inputs = {value.name for value in promoted.graph.input}
    for value, number in interface:
        if number in numbers - {_BFLOAT16}:
            value.type.tensor_type.elem_type = number
    # An input may be an output at the same time.
    edges = {value.name: number for value, number in interface}
    for name, number in edges.items():
        if number in numbers - {_BFLOAT16}:
            _cast_at_edge(promoted.graph, name, number, name in inputs)
    return promoted


def _constant_type(node: Any) -> int:
    return next((int(a.t.data_type) for a in node.attribute if a.name == "value"), 0)


def _returned(node: Any, number: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), number)


def _interface(model: Any) -> list[Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return [*inputs, *model.graph.output]


def _promote_graph(graph: Any, numbers: set[int]) -> None:
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in numbers:
            value.type.tensor_type.elem_type = _FLOAT
    for tensor in graph.initializer:
        _promote_tensor(tensor, numbers)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _promote_tensor(attribute.t, numbers)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in numbers:
                attribute.i = _FLOAT


def _promote_tensor(tensor: Any, numbers: set[int]) -> None:
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type in numbers:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _cast_at_edge(graph: Any, name: str, number: int, is_input: bool) -> None:
    """Keep the type of an input or output, and cast behind the one or in front of the other."""
    from onnx import helper

    inside = _unused(graph, f"{name}_float32")
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = [inside if value == name else value for value in node.input]
            if not is_input:
                node.output[:] = [inside if value == name else value for value in node.output]
        for value in inner.output if inner is not graph else ():
            value.name = inside if value.name == name else value.name
    for tensor in graph.initializer:
        tensor.name = inside if tensor.name == name else tensor.name
    ends = (name, inside, _FLOAT) if is_input else (inside, name, number)
    cast = helper.make_node("Cast", [ends[0]], [ends[1]], name=f"{inside}_cast", to=ends[2])
    nodes = [cast, *graph.node] if is_input else [*graph.node, cast]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _unused(graph: Any, name: str) -> str:
    taken = {value.name for value in graph.input}
    for inner in walk_graphs(graph):
        taken |= {tensor.name for tensor in inner.initializer}
        taken |= {value for node in inner.node for value in node.output}
    while name in taken:
        name += "_"
    return name
