"""What goes into a graph and what comes out, and how its outputs are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.errors import GraphError
from edgepack.graph.proto import copied, walk_graphs
from edgepack.runtime.tensor import Dim, Tensor


def signature(model: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs of an ONNX model.

    A dynamic axis carries the graph's own name for it; one that the graph does not name is
    called after its tensor and position (`logits_1`). Inputs that have an initializer (an old
    way to write weights) are no inputs. Shapes of outputs that the graph does not state are
    inferred; where that fails they have no axes.

    Raises:
        GraphError: `tensor-type` where an input or output is not a plain tensor.
    """
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(_tensor(value) for value in model.graph.input if value.name not in weights)
    stated = {value.name: value for value in model.graph.output}
    if not all(value.type.tensor_type.HasField("shape") for value in stated.values()):
        stated |= _inferred_outputs(model)
    return inputs, tuple(_tensor(stated[value.name]) for value in model.graph.output)


def default_output_names(count: int) -> tuple[str, ...]:
    """`output` for one output, else `output_0`, `output_1`, ..."""
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))


def rename_outputs(model: Any, names: Sequence[str]) -> Any:
    """A copy of the model with its outputs called `names`, in their order.

    An output that is also an input, an initializer or an earlier output of the graph gets an
    `Identity` node of its own, so that the number and the order of outputs stay the model's.

    Raises:
        GraphError: `output-names` where `names` are not as many as the outputs, not unique,
            or one of them is an input's name.
    """
    import onnx

    graph = model.graph
    inputs = {value.name for value in graph.input}
    clash = sorted(inputs.intersection(names))
    if len(names) != len(graph.output) or len(set(names)) != len(names) or clash or "" in names:
        raise GraphError(
            "output-names",
            "the names given to the outputs do not fit the model",
            why=f"{len(graph.output)} outputs; names: {', '.join(names)}"
            + (f"; already an input: {', '.join(clash)}" if clash else ""),
            hint="give one name to each output, all different, none of them an input's",
        )
    model = copied(model)
    graph = model.graph
    # torch writes an output that is an input as an Identity from the name to itself.
    for node in [n for n in graph.node if n.op_type == "Identity" and n.input == n.output]:
        graph.node.remove(node)
    given = inputs | {initializer.name for initializer in graph.initializer}
    mapping: dict[str, str] = {}
    bypass: list[tuple[str, str]] = []
    for value, name in zip(graph.output, names, strict=True):
        if value.name in given or value.name in mapping:
            bypass.append((value.name, name))
        else:
            mapping[value.name] = name
    _make_room(graph, set(names), mapping)
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = [mapping.get(name, name) for name in node.input]
            node.output[:] = [mapping.get(name, name) for name in node.output]
        for value in [*inner.value_info, *(inner.output if inner is not graph else ())]:
            value.name = mapping.get(value.name, value.name)
    for source, name in bypass:
        graph.node.append(
            onnx.helper.make_node("Identity", [mapping.get(source, source)], [name], name=name)
        )
    for value, name in zip(graph.output, names, strict=True):
        value.name = name
    return model


def name_dimensions(model: Any, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions in place, also inside expressions such as `2*s77`."""
    import re

    pattern = re.compile(r"[A-Za-z_]\w*")
    for graph in walk_graphs(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = pattern.sub(
                        lambda found: names.get(found.group(), found.group()), dim.dim_param
                    )


def _make_room(graph: Any, wanted: set[str], mapping: dict[str, str]) -> None:
    """Give another name to inner values that are called as an output shall be."""
    inner_names = {name for node in graph.node for name in node.output}
    taken = inner_names | wanted | {initializer.name for initializer in graph.initializer}
    for name in sorted(wanted & inner_names - set(mapping)):
        fresh = f"{name}_inner"
        while fresh in taken:
            fresh += "_"
        taken.add(fresh)
        mapping[name] = fresh
    for initializer in graph.initializer:
        if initializer.name in wanted:
            fresh = f"{initializer.name}_weight"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            mapping[initializer.name] = fresh
            initializer.name = fresh


def _inferred_outputs(model: Any) -> dict[str, Any]:
    import onnx
    import onnx.shape_inference

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    return {value.name: value for value in inferred.graph.output}


def _tensor(value: Any) -> Tensor:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or value.type.tensor_type.elem_type == onnx.TensorProto.UNDEFINED:
        raise GraphError(
            "tensor-type",
            f"{value.name} is not a tensor",
            why=f"its ONNX type is {kind or 'not stated'}",
            hint="edgepack feeds and compares arrays: let the model take and return tensors",
        )
    tensor = value.type.tensor_type
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        # A value of 0 or less is how some exporters write "unknown".
        fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        shape.append(fixed or dim.dim_param or f"{value.name}_{axis}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Tensor(value.name, "string" if dtype.kind == "O" else str(dtype), tuple(shape))
