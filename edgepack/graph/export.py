"""torch to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepack.errors import GraphError
from edgepack.graph.exporting import exporting
from edgepack.graph.frozen import freezing_line, frozen_axis, frozen_error
from edgepack.graph.names import name_nodes, strip_metadata
from edgepack.graph.opset import cast_up, needed_opset, operators_above, with_promoted
from edgepack.graph.outputs import state_outputs
from edgepack.graph.proto import NEWEST_OPSET, require_size
from edgepack.graph.quiet import quiet
from edgepack.graph.signature import default_output_names, name_dimensions, rename_outputs
from edgepack.graph.sizes import bind_sizes, resized
from edgepack.graph.torchscript import export_script, trace_module
from edgepack.graph.trace import explain, model_line
from edgepack.ledger import PassResult
from edgepack.runtime.tensor import Tensor

_BY_TRACING = (
    "exported by tracing (torch.onnx, dynamo=False) instead, and compared with the model at other "
    "sizes of every dynamic axis."
)


def export_module(
    module: Any,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    opset: int,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[Any]:
    """Export a torch module, or a TorchScript one, with its inputs given by position.

    Args:
        module: in eval mode, on the CPU; returns a tensor, a tuple, a list or a dict of them.
        inputs: name, type and shape of each input; axes of one name are one dynamic axis.
        example: one array per input. A dynamic axis of size 1 is exported at 2, because torch
            takes 1 for a constant; all other sizes are the example's.
        opset: version of ONNX's operators.
        output_names: names of the outputs; without them a dict's keys, else `output` or
            `output_0`, `output_1`, ...
        for_passes: whether passes of the chain read the graph, which takes float32 weights.

    Returns:
        The `onnx.ModelProto`; its nodes are called after the modules that they come from, its
        outputs state the axes that they were seen to have.

    Raises:
        GraphError: `export-failed` with the line of the model's source, `axis-frozen` where
            torch fixed an axis that shall be dynamic, `graph-too-large`, `example-misfit`,
            `output-names`.
    """
    import torch

    tensors = [*module.parameters(), *module.buffers()]
    require_size(sum(t.numel() * t.element_size() for t in tensors), type(module).__name__)
    sizes = {name: max(size, 2) for name, size in bind_sizes(inputs, example).items()}
    arrays = resized(inputs, example, sizes)
    args = tuple(torch.from_numpy(arrays[tensor.name].copy()) for tensor in inputs)
    exported = _export(module, inputs, args, arrays, sizes, opset)
    model, promoted = cast_up(exported.model, for_passes)
    model = state_outputs(_finish(model, output_names, exported.keys), inputs, arrays)
    newer = operators_above(model, opset)
    raised = (f"exported at a newer opset than {opset} for {', '.join(newer)}",) if newer else ()
    result = PassResult(model, True, (exported.note, *raised), {"traced": exported.traced})
    return with_promoted(result, promoted)


@dataclass(frozen=True)
class _Exported:
    """A graph as the exporter made it.

    Attributes:
        model: the `onnx.ModelProto`.
        keys: of the outputs, where the module returns a dict; None where the exporter loses them.
        note: names the exporter, and why it was that one.
        traced: whether it follows one path through the module's code.
    """

    model: Any
    keys: tuple[str, ...] | None
    note: str
    traced: bool = False


def _export(
    module: Any,
    inputs: Sequence[Tensor],
    args: tuple[Any, ...],
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    opset: int,
) -> _Exported:
    """Export by torch.export, or by tracing where that fails."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        try:
            model = export_script(module, inputs, args, opset)
        except Exception as error:  # the exporter raises whatever the model and torch raise
            raise _failure(module, args, error) from error
        return _Exported(model, None, "Exported by walking the TorchScript graph.")
    try:
        model, keys = _export_dynamo(module, inputs, args, opset, list(sizes))
        needed = needed_opset(model)
        if opset < needed <= NEWEST_OPSET:
            model, keys = _export_dynamo(module, inputs, args, needed, list(sizes))
    except Exception as error:  # as above
        traced = trace_module(module, inputs, args, arrays, sizes, opset)
        if traced is None:
            raise _failure(module, args, error) from error
        note = f"torch.export failed ({explain(error)[0]}); {_BY_TRACING}"
        return _Exported(traced, None, note, traced=True)
    frozen = frozen_axis(inputs, model)
    if frozen is None:
        return _Exported(model, keys, "Exported by torch.export (dynamo).")
    line = freezing_line(module, inputs, args)
    traced = trace_module(module, inputs, args, arrays, sizes, opset)
    if traced is None:
        raise frozen_error(frozen, line)
    where = f" at {line}" if line else ""
    axis = frozen[0].shape[frozen[1]]
    note = f"torch.export froze the axis {axis}{where}; {_BY_TRACING}"
    return _Exported(traced, None, note, traced=True)


def export_traced(
    module: Any,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    opset: int,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[Any] | None:
    """`export_module` by tracing, for a module of which torch.export makes a wrong graph.

    It bakes the number of steps into a recurrent layer whose first axis is the time, for one.

    Returns None where the trace does not compute what the module does at other sizes either.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return None
    sizes = {name: max(size, 2) for name, size in bind_sizes(inputs, example).items()}
    arrays = resized(inputs, example, sizes)
    args = tuple(torch.from_numpy(arrays[tensor.name].copy()) for tensor in inputs)
    traced = trace_module(module, inputs, args, arrays, sizes, opset)
    if traced is None:
        return None
    traced, promoted = cast_up(traced, for_passes)
    model = state_outputs(_finish(traced, output_names, None), inputs, arrays)
    result = PassResult(model, True, ("Exported by tracing.",), {"traced": True})
    return with_promoted(result, promoted)


def export_program(
    program: Any,
    opset: int,
    inputs: Sequence[Tensor] | None = None,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[Any]:
    """Export a `torch.export.ExportedProgram`; its dynamic axes are those that it was made with.

    Args:
        program: the program.
        opset: version of ONNX's operators.
        inputs: names for its inputs and their dynamic axes, in their order; without them the
            program's own.
        output_names: as in `export_module`.
        for_passes: as in `export_module`.

    Raises:
        GraphError: as `export_module`; `axis-frozen` where `inputs` call an axis dynamic that
            the program fixed; `input-names` where they are not as many as the program's.
    """
    import torch

    weights = [*program.state_dict.values(), *program.constants.values()]
    tensors = [value for value in weights if isinstance(value, torch.Tensor)]
    require_size(sum(t.numel() * t.element_size() for t in tensors), "the exported program")
    # An optional argument that was None at export is no input of the graph.
    expected = [name for name in program.graph_signature.user_inputs if name is not None]
    if inputs is not None and len(inputs) != len(expected):
        raise GraphError(
            "input-names",
            "the inputs do not fit the exported program",
            why=f"{len(inputs)} given; it takes {len(expected)}: {', '.join(map(str, expected))}",
            hint="give one --input to each, in this order",
        )
    try:
        with exporting():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.name for tensor in inputs] if inputs else None,
                verbose=False,
            )
            model = exported.model_proto
    except Exception as error:  # as above
        raise _failure(None, (), error) from error
    if inputs is not None:
        found = frozen_axis(inputs, model)
        if found:
            raise frozen_error(found, None)
        name_dimensions(model, _symbol_names(model, inputs))
    model, promoted = cast_up(model, for_passes)
    model = _finish(model, output_names, _structured_names(program))
    result = PassResult(model, True, ("Exported from the torch.export program.",))
    return with_promoted(result, promoted)


def _export_dynamo(
    module: Any, inputs: Sequence[Tensor], args: tuple[Any, ...], opset: int, axes: Sequence[str]
) -> tuple[Any, tuple[str, ...] | None]:
    """The graph, and the keys of its outputs where the module returns a dict."""
    import torch

    # An axis may be called as no Python identifier, or as a function of sympy (N, S): torch
    # gets neutral names.
    symbols = {name: torch.export.Dim(f"axis_{index}") for index, name in enumerate(axes)}
    shapes = tuple(
        {axis: symbols[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in inputs
    )
    with exporting():
        exported: Any = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes,
            input_names=[tensor.name for tensor in inputs],
            verbose=False,
        )
        model = exported.model_proto
    names = {f"axis_{index}": name for index, name in enumerate(axes)}
    name_dimensions(model, _symbol_names(model, inputs) | names)
    return model, _structured_names(exported.exported_program)


def _finish(model: Any, names: Sequence[str] | None, keys: Sequence[str] | None) -> Any:
    name_nodes(model)
    strip_metadata(model)
    require_size(model.ByteSize(), "the exported graph")
    return rename_outputs(model, names or keys or default_output_names(len(model.graph.output)))


def _failure(module: Any, args: tuple[Any, ...], error: Exception) -> GraphError:
    """The error to raise for the exporter's; the model's own failure goes first."""
    import torch

    if module is not None:
        try:
            with quiet(), torch.no_grad():
                module(*args)
        except Exception as own:  # noqa: BLE001 - the model itself cannot take these inputs
            fed = ", ".join(f"{arg.dtype}{list(arg.shape)}" for arg in args)
            line = model_line(own)
            return GraphError(
                "export-failed",
                "the model itself fails on the example inputs",
                why=f"{explain(own)[0]}" + (f"\nat {line}" if line else "") + f"\nfed: {fed}",
                hint="check the inputs' shapes, types and order (--input)",
            )
    cause, hint = explain(error)
    line = model_line(error)
    return GraphError(
        "export-failed",
        "the model cannot be exported to ONNX",
        why=cause + (f"\nat {line}" if line else ""),
        hint=hint,
    )


def _symbol_names(model: Any, inputs: Sequence[Tensor]) -> dict[str, str]:
    """torch's symbols for the dynamic axes (`s77`) to the names of the axes."""
    names: dict[str, str] = {}
    for tensor, value in zip(inputs, model.graph.input, strict=True):
        for dim, made in zip(tensor.shape, value.type.tensor_type.shape.dim, strict=True):
            if isinstance(dim, str) and made.dim_param.isidentifier():
                names.setdefault(made.dim_param, dim)
    return names


def _structured_names(program: Any) -> tuple[str, ...] | None:
    """The keys of a model that returns a dict (or a dataclass that torch takes for one)."""
    spec = program.call_spec.out_spec
    children, keys = spec.children(), spec.context
    if isinstance(keys, tuple) and keys and isinstance(keys[0], list):
        keys = keys[0]  # a dataclass: its field names stand first
    if not isinstance(keys, list) or len(keys) != len(children) or not children:
        return None
    named = all(isinstance(key, str) for key in keys) and all(c.is_leaf() for c in children)
    return tuple(keys) if named else None
