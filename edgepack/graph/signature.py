"""Inputs and outputs of a graph, and the names of its outputs and dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgepack.errors import GraphError
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.names import renamed, unused
from edgepack.onnx_tools.walk import by_name, fed_inputs, names_of, walk_graphs
from edgepack.runtime.tensor import Dim, Tensor

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto


def signature(model: ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs of an ONNX model.

    A dynamic axis has its name in the graph; an unnamed one is named after its tensor and
    position (`logits_1`). Inputs with an initializer (an old way to write weights) are left out.
    Undeclared shapes of outputs are inferred; if that fails, they have no axes.

    Raises:
        GraphError: `tensor-type` if an input or output is not a plain tensor.
    """
    inputs = tuple(map(_tensor, fed_inputs(model.graph)))
    outputs = list(model.graph.output)
    if not all(value.type.tensor_type.HasField("shape") for value in outputs):
        inferred = _inferred_outputs(model)
        outputs = [inferred.get(value.name, value) for value in outputs]
    return inputs, tuple(map(_tensor, outputs))


def default_output_names(count: int) -> tuple[str, ...]:
    """Return `output` for one output, else `output_0`, `output_1`, ..."""
    if count == 1:
        return ("output",)
    return tuple(f"output_{index}" for index in range(count))


def rename_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy of the model with its outputs renamed to `names`, in order.

    An output that is also an input, an initializer or an earlier output of the graph gets a
    separate `Identity` node, so that the number and order of the outputs do not change.

    Raises:
        GraphError: `output-names` if the number of `names` is not that of the outputs, if a name
            is repeated, or if it is an input's.
    """
    import onnx

    graph = model.graph
    inputs = names_of(graph.input)
    clash = sorted(inputs.intersection(names))
    if len(names) != len(graph.output) or len(set(names)) != len(names) or clash or "" in names:
        why = f"{len(graph.output)} outputs; names: {', '.join(names)}"
        if clash:
            why += f"; already an input: {', '.join(clash)}"
        raise GraphError(
            "output-names",
            "the output names do not fit the model",
            why=why,
            hint="pass one name per output, all different, none of them an input's",
        )
    model = copied(model)
    graph = model.graph
    # torch writes an output that is an input as an Identity from the name to itself.
    for node in list(graph.node):
        if node.op_type == "Identity" and node.input == node.output:
            graph.node.remove(node)
    reserved = inputs | names_of(graph.initializer)
    # A graph whose outputs are (x, y, y) with x an input maps y only; x and the second y bypass it.
    mapping: dict[str, str] = {}
    bypass: list[tuple[str, str]] = []
    for value, name in zip(graph.output, names, strict=True):
        if value.name in reserved or value.name in mapping:
            bypass.append((value.name, name))
        else:
            mapping[value.name] = name
    _rename_clashes(graph, set(names), mapping)
    # The outputs of the main graph are renamed last, since an output may occur there twice.
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = renamed(node.input, mapping)
            node.output[:] = renamed(node.output, mapping)
        values = list(inner.value_info)
        if inner is not graph:
            values += inner.output
        for value in values:
            value.name = mapping.get(value.name, value.name)
    for source, name in bypass:
        graph.node.append(
            onnx.helper.make_node("Identity", [mapping.get(source, source)], [name], name=name)
        )
    for value, name in zip(graph.output, names, strict=True):
        value.name = name
    return model


def name_dimensions(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions in place, also inside expressions such as `2*s77`."""
    import re

    # With {"s77": "batch"}, "2*s77" becomes "2*batch".
    pattern = re.compile(r"[A-Za-z_]\w*")
    for graph in walk_graphs(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = pattern.sub(
                        lambda match: names.get(match.group(), match.group()), dim.dim_param
                    )


def _rename_clashes(graph: GraphProto, requested: set[str], mapping: dict[str, str]) -> None:
    """Rename inner values that already have the requested name of an output, in the mapping."""
    inner_names: set[str] = set()
    for node in graph.node:
        inner_names.update(node.output)
    used = inner_names | requested | names_of(graph.initializer)
    # An inner value "logits" makes room for the output of that name by becoming "logits_inner".
    for name in sorted(requested & inner_names - set(mapping)):
        mapping[name] = unused(f"{name}_inner", used)
    for initializer in graph.initializer:
        if initializer.name in requested:
            fresh = unused(f"{initializer.name}_weight", used)
            mapping[initializer.name] = fresh
            initializer.name = fresh


def _inferred_outputs(model: ModelProto) -> dict[str, ValueInfoProto]:
    import onnx
    import onnx.shape_inference

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    return by_name(inferred.graph.output)


def _tensor(value: ValueInfoProto) -> Tensor:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or value.type.tensor_type.elem_type == onnx.TensorProto.UNDEFINED:
        raise GraphError(
            "tensor-type",
            f"{value.name} is not a tensor",
            why=f"its ONNX type is {kind or 'unknown'}",
            hint="make the model take and return tensors only",
        )
    tensor = value.type.tensor_type
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        # Some exporters write 0 or -1 for an unknown size.
        fixed = max(dim.dim_value, 0)
        shape.append(fixed or dim.dim_param or f"{value.name}_{axis}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Tensor(value.name, "string" if dtype.kind == "O" else str(dtype), tuple(shape))
