"""Export of torch modules and exported programs to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import GraphError
from edgepack.graph.exporting import exporting
from edgepack.graph.frozen import freezing_line, frozen_axis, frozen_error
from edgepack.graph.names import name_nodes, strip_metadata
from edgepack.graph.opset import cast_up, needed_opset, operators_above, with_promoted
from edgepack.graph.outputs import state_outputs
from edgepack.graph.quiet import quiet
from edgepack.graph.signature import default_output_names, name_dimensions, rename_outputs
from edgepack.graph.sizes import bind_sizes, dynamic_axes, resize_axes
from edgepack.graph.torchscript import export_script, trace_module
from edgepack.graph.trace import explain, model_line
from edgepack.ledger import PassResult
from edgepack.onnx_tools.limits import NEWEST_OPSET, require_size
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor as TorchTensor
    from torch.export import ExportedProgram
    from torch.nn import Module

_BY_TRACING = (
    "exported by tracing (torch.onnx, dynamo=False) instead, and compared with the model at other "
    "sizes of every dynamic axis."
)


def export_module(
    module: Module,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    opset: int,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[ModelProto]:
    """Export a torch or TorchScript module; its inputs are passed by position.

    Args:
        module: in eval mode, on the CPU; returns a tensor, a tuple, a list or a dict of them.
        inputs: name, type and shape of each input; axes that share a name are one dynamic axis.
        example: one array per input. A dynamic axis of size 1 is exported at 2, because torch
            treats 1 as a constant; all other sizes are the example's.
        opset: version of ONNX's operators.
        output_names: names of the outputs; without them a dict's keys, else `output` or
            `output_0`, `output_1`, ...
        for_passes: True if passes of the chain read the graph; they need float32 weights.

    Returns:
        The `onnx.ModelProto`; its nodes are named after the modules that they come from, its
        outputs declare the axes that running the graph showed.

    Raises:
        GraphError: `export-failed` with the line of the model's source, `axis-frozen` if torch
            fixed an axis that is declared dynamic, `graph-too-large`, `example-misfit`,
            `output-names`.
    """

    require_size(_weight_bytes([*module.parameters(), *module.buffers()]), type(module).__name__)
    sizes, arrays, args = _arguments(inputs, example)
    exported = _export(module, inputs, args, arrays, sizes, opset)
    model, promoted = cast_up(exported.model, for_passes)
    model = state_outputs(_finish(model, output_names, exported.keys), inputs, arrays)
    notes = [exported.note]
    newer = operators_above(model, opset)
    if newer:
        notes.append(f"exported at a newer opset than {opset} for {', '.join(newer)}")
    result = PassResult(model, True, tuple(notes), {"traced": exported.traced})
    return with_promoted(result, promoted)


@dataclass(frozen=True)
class _Exported:
    """The result of an exporter.

    Attributes:
        model: the `onnx.ModelProto`.
        keys: of the outputs if the module returns a dict; None if the exporter loses them.
        note: the exporter, and the reason for choosing it.
        traced: True if the graph follows one path through the module's code.
    """

    model: ModelProto
    keys: tuple[str, ...] | None
    note: str
    traced: bool = False


def _export(
    module: Module,
    inputs: Sequence[Tensor],
    args: tuple[TorchTensor, ...],
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    opset: int,
) -> _Exported:
    """Export by torch.export, or by tracing if that fails or freezes a dynamic axis."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        try:
            model = export_script(module, inputs, args, opset)
        except Exception as error:  # the exporter raises whatever the model and torch raise
            raise _failure(module, args, error) from error
        return _Exported(model, None, "Exported by walking the TorchScript graph.")
    try:
        model, keys = _export_dynamo(module, inputs, args, opset, list(sizes))
        # Some operators exist in newer opsets only: DeformConv makes opset 18 become 19.
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
    # torch.export replaced a dynamic axis by a number; a trace may keep it dynamic.
    tensor, position, _ = frozen
    # Example: torch.export froze the axis time at net.py:12 in forward: x.view(8, -1); exported ...
    location = f" at {line}" if line else ""
    note = f"torch.export froze the axis {tensor.shape[position]}{location}; {_BY_TRACING}"
    return _Exported(traced, None, note, traced=True)


def export_traced(
    module: Module,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    opset: int,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[ModelProto] | None:
    """Export a module by tracing, for modules that torch.export turns into a wrong graph.

    For example it bakes the number of steps into a recurrent layer whose first axis is time.

    Returns None if the trace, too, disagrees with the module at other sizes.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return None
    sizes, arrays, args = _arguments(inputs, example)
    traced = trace_module(module, inputs, args, arrays, sizes, opset)
    if traced is None:
        return None
    traced, promoted = cast_up(traced, for_passes)
    model = state_outputs(_finish(traced, output_names, None), inputs, arrays)
    result = PassResult(model, True, ("Exported by tracing.",), {"traced": True})
    return with_promoted(result, promoted)


def export_program(
    program: ExportedProgram,
    opset: int,
    inputs: Sequence[Tensor] | None = None,
    output_names: Sequence[str] | None = None,
    for_passes: bool = True,
) -> PassResult[ModelProto]:
    """Export a `torch.export.ExportedProgram` with the dynamic axes that it was built with.

    Args:
        program: the program.
        opset: version of ONNX's operators.
        inputs: names of its inputs and dynamic axes, in order; None keeps the program's names.
        output_names: as in `export_module`.
        for_passes: as in `export_module`.

    Raises:
        GraphError: as `export_module`; `axis-frozen` if `inputs` declare an axis dynamic that
            the program fixed; `input-names` if their number is not the program's.
    """
    import torch

    weights = [*program.state_dict.values(), *program.constants.values()]
    require_size(_weight_bytes(weights), "the exported program")
    # An optional argument that was None at export is not an input of the graph.
    expected = [name for name in program.graph_signature.user_inputs if name is not None]
    if inputs is not None and len(inputs) != len(expected):
        raise GraphError(
            "input-names",
            "the inputs do not fit the exported program",
            why=f"expected {len(expected)} ({', '.join(map(str, expected))}), got {len(inputs)}",
            hint="pass one --input for each, in this order",
        )
    names = None
    if inputs:
        names = [tensor.name for tensor in inputs]
    try:
        with exporting():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                verbose=False,
            )
            model = exported.model_proto
    except Exception as error:  # as above
        raise _failure(None, (), error) from error
    if inputs is not None:
        frozen = frozen_axis(inputs, model)
        if frozen:
            raise frozen_error(frozen, None)
        name_dimensions(model, _symbol_names(model, inputs))
    model, promoted = cast_up(model, for_passes)
    model = _finish(model, output_names, _structured_names(program))
    result = PassResult(model, True, ("Exported from the torch.export program.",))
    return with_promoted(result, promoted)


def _weight_bytes(values: Sequence[object]) -> int:
    """Sum the bytes of tensors; other values count nothing."""
    import torch

    total = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
    return total


def _arguments(
    inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]
) -> tuple[dict[str, int], dict[str, np.ndarray], tuple[TorchTensor, ...]]:
    """Return the sizes of the dynamic axes, and the example at them as arrays and as tensors."""
    import torch

    sizes = bind_sizes(inputs, example)
    for name, size in sizes.items():
        # torch.export fixes an axis whose size is 1 in the example.
        sizes[name] = max(size, 2)
    arrays = resize_axes(inputs, example, sizes)
    args = tuple(torch.from_numpy(arrays[tensor.name].copy()) for tensor in inputs)
    return sizes, arrays, args


def _export_dynamo(
    module: Module,
    inputs: Sequence[Tensor],
    args: tuple[TorchTensor, ...],
    opset: int,
    axes: Sequence[str],
) -> tuple[ModelProto, tuple[str, ...] | None]:
    """Return the graph, and the keys of its outputs if the module returns a dict."""
    import torch

    # An axis name need not be a Python identifier, and may be a function of sympy (N, S), so torch
    # gets neutral names: "batch" and "time" become "axis_0" and "axis_1".
    names: dict[str, str] = {}
    symbols: dict[str, object] = {}
    for index, name in enumerate(axes):
        names[f"axis_{index}"] = name
        symbols[name] = torch.export.Dim(f"axis_{index}")
    shapes: list[dict[int, object]] = []
    for tensor in inputs:
        # For "image" of (batch, 3, 224, 224): {0: Dim("axis_0")}.
        shapes.append({axis: symbols[dim] for axis, dim in dynamic_axes(tensor).items()})
    with exporting():
        exported: Any = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple(shapes),
            input_names=[tensor.name for tensor in inputs],
            verbose=False,
        )
        model = exported.model_proto
    name_dimensions(model, _symbol_names(model, inputs) | names)
    return model, _structured_names(exported.exported_program)


def _finish(
    model: ModelProto, names: Sequence[str] | None, keys: Sequence[str] | None
) -> ModelProto:
    # Node names come from the metadata, so this must precede its removal.
    name_nodes(model)
    strip_metadata(model)
    require_size(model.ByteSize(), "the exported graph")
    return rename_outputs(model, names or keys or default_output_names(len(model.graph.output)))


def _failure(module: Module, args: tuple[TorchTensor, ...], error: Exception) -> GraphError:
    """Return the error for a failed export, or the model's own if it fails without an exporter."""
    import torch

    if module is not None:
        try:
            with quiet(), torch.no_grad():
                module(*args)
        except Exception as failure:  # noqa: BLE001 - the model itself cannot take these inputs
            shapes = ", ".join(f"{arg.dtype}{list(arg.shape)}" for arg in args)
            line = model_line(failure)
            return GraphError(
                "export-failed",
                "the model itself fails on the example inputs",
                why=_located(explain(failure)[0], line) + f"\ninputs: {shapes}",
                hint="check the inputs' shapes, types and order (--input)",
            )
    cause, hint = explain(error)
    return GraphError(
        "export-failed",
        "the model cannot be exported to ONNX",
        why=_located(cause, model_line(error)),
        hint=hint,
    )


def _located(cause: str, line: str | None) -> str:
    """Append the line of the model's source to a cause, if it is available."""
    return f"{cause}\nat {line}" if line else cause


def _symbol_names(model: ModelProto, inputs: Sequence[Tensor]) -> dict[str, str]:
    """Map torch's symbols for the dynamic axes (`s77`) to the names of the axes."""
    names: dict[str, str] = {}
    for tensor, value in zip(inputs, model.graph.input, strict=True):
        for dim, exported_dim in zip(tensor.shape, value.type.tensor_type.shape.dim, strict=True):
            # One symbol may name several axes, say s77 for both batch axes: the first name wins.
            if isinstance(dim, str) and exported_dim.dim_param.isidentifier():
                names.setdefault(exported_dim.dim_param, dim)
    return names


def _structured_names(program: ExportedProgram) -> tuple[str, ...] | None:
    """Return the keys of a model that returns a dict, or a dataclass that torch treats as one."""
    spec = program.call_spec.out_spec
    children, keys = spec.children(), spec.context
    if isinstance(keys, tuple) and keys and isinstance(keys[0], list):
        # The context of a dataclass is a tuple whose first item lists its field names.
        keys = keys[0]
    if not isinstance(keys, list) or len(keys) != len(children) or not children:
        return None
    # A key may be an integer, and a value another dict: neither has a name for its outputs.
    for key, child in zip(keys, children, strict=True):
        if not isinstance(key, str) or not child.is_leaf():
            return None
    return tuple(keys)
