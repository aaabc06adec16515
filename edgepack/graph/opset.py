"""Loading of ONNX files, and their conversion to the operator set of the target's engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import GraphError
from edgepack.graph.names import strip_metadata
from edgepack.graph.outputs import state_inputs
from edgepack.graph.simplify import check_failure
from edgepack.ledger import PassResult
from edgepack.normalize import (
    free_zero_axes,
    promote_floats,
    set_lengths,
    sort_nodes,
    split_fused,
    tensors,
    types_to_promote,
)
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.limits import NEWEST_OPSET, OLDEST_OPSET, default_opset, require_size
from edgepack.onnx_tools.walk import DEFAULT_DOMAINS, standard_operators, walk_graphs
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto


def load_onnx(
    path: Path, opset: int, inputs: Sequence[Tensor] = (), for_passes: bool = True
) -> PassResult[ModelProto]:
    """Load an ONNX file with its external data into one message, at the target's opset.

    Args:
        path: the file; external data lies in the same folder.
        opset: requested version of the default operator set.
        inputs: axes to declare for the inputs; inputs not listed keep those of the file.
        for_passes: True if passes of the chain read the graph; they need float32 weights.

    Raises:
        GraphError: `onnx-unreadable`, `external-data` if a data file is missing or too short,
            `graph-too-large`, and the errors of `to_opset`.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise GraphError(
            "onnx-unreadable",
            f"{path.name} cannot be read as an ONNX file",
            why=str(error).splitlines()[0][:200],
            hint="download or export the file again",
        ) from error
    if not model.graph.node:
        raise GraphError(
            "onnx-unreadable",
            f"{path.name} holds no graph",
            why=f"{path.stat().st_size} bytes, no nodes",
            hint="download or export the file again",
        )
    # Some exporters write nodes out of order, 0 for an unknown size, and no length for a tensor.
    sort_nodes(model)
    free_zero_axes(model)
    set_lengths(model)
    require_size(path.stat().st_size + external_bytes(model), path.name)
    try:
        _fill_sparse(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise GraphError(
            "external-data",
            f"the weights of {path.name} cannot be loaded",
            why=" ".join(str(error).split())[:300],
            hint=f"put the external data files beside {path.name}, unchanged",
        ) from error
    split: tuple[str, ...] = ()
    if for_passes:
        split = split_fused(model)
    model, promoted = cast_up(model, for_passes)
    result = with_promoted(to_opset(state_inputs(model, inputs), opset), promoted)
    if not split:
        return result
    kinds = ", ".join(sorted(set(split)))
    note = f"fused operators of onnxruntime split into standard ones: {len(split)} ({kinds})"
    return replace(result, changed=True, notes=(*result.notes, note))


def cast_up(model: ModelProto, for_passes: bool) -> tuple[ModelProto, tuple[str, ...]]:
    """Cast a graph of low or double precision to float32 if the build needs it.

    Returns:
        The model, and the types that were cast, out of float16, bfloat16 and float64.
    """
    import onnx.inliner

    flat = model
    if model.functions:
        flat = onnx.inliner.inline_local_functions(model)
    types = types_to_promote(flat, for_passes)
    if not types:
        return model, ()
    return promote_floats(flat, types), types


def with_promoted(result: PassResult[ModelProto], types: Sequence[str]) -> PassResult[ModelProto]:
    """Add the types that were cast to float32 to the notes and details of a result."""
    if not types:
        return result
    note = f"{' and '.join(types)} weights cast to float32"
    return replace(
        result,
        changed=True,
        notes=(*result.notes, note),
        details={**result.details, "promoted": list(types)},
    )


def _fill_sparse(model: ModelProto, path: Path) -> None:
    """Make sparse initializers dense, in place: onnx's shape inference accepts no others."""
    import numpy as np
    from onnx import numpy_helper

    for graph in walk_graphs(model.graph):
        for sparse in graph.sparse_initializer:
            values = numpy_helper.to_array(sparse.values, str(path.parent))
            indices = numpy_helper.to_array(sparse.indices, str(path.parent))
            require_size(prod(sparse.dims) * values.itemsize, sparse.values.name)
            full = np.zeros(tuple(sparse.dims), values.dtype)
            # Indices are positions in the flat tensor (7 of 2 x 4 is [1, 3]), or one row of
            # coordinates for each value.
            if indices.ndim == 1:
                full[np.unravel_index(indices, full.shape)] = values
            else:
                full[(*indices.T,)] = values
            graph.initializer.append(numpy_helper.from_array(full, sparse.values.name))
        del graph.sparse_initializer[:]


def to_opset(model: ModelProto, opset: int) -> PassResult[ModelProto]:
    """Convert a model to a newer opset, or to an older one if no engine runs its own.

    If onnx's converter fails, or its result does not pass the full check (it does not convert
    the branches of `If` and `Loop`), the model keeps an opset that engines run, and the note
    gives the reason.

    Raises:
        GraphError: `opset-conversion` if conversion fails and the model's opset is below
            `OLDEST_OPSET` or above `NEWEST_OPSET`.
    """
    import onnx.inliner
    import onnx.version_converter

    current = default_opset(model)
    if opset <= current <= NEWEST_OPSET:
        note = f"The graph is already at opset {current}"
        if current != opset:
            note += f"; the target needs {opset} or newer"
        return PassResult(model, False, (f"{note}.",))
    # The converter fails on stale shapes, so they go first. A graph of opset 23 for a target of 17,
    # for example, has its Attention (23) expanded into older operators; then all is converted to
    # 17, or to the oldest opset that has every operator.
    base = copied(model)
    strip_metadata(base)
    if base.functions:
        base = onnx.inliner.inline_local_functions(base)
    requested = opset
    try:
        if current > NEWEST_OPSET:
            base = _expanded(base, opset)
        opset = max(requested, min(needed_opset(base), current))
        converted = onnx.version_converter.convert_version(base, opset)
        failure = check_failure(converted)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        failure = " ".join(str(error).split())[:300]
        # Going back may still be possible without the converter, by changing the number only.
        converted = _restated(base, opset)
        if opset < current and check_failure(converted) is None:
            failure = None
    if not failure and opset <= NEWEST_OPSET:
        note = f"Opset {current} was converted to {opset}"
        if opset != requested:
            note += f"; its operators need {opset}, the target states {requested}"
        return PassResult(converted, True, (f"{note}.",))
    if OLDEST_OPSET <= current <= NEWEST_OPSET:
        note = f"The graph stays at opset {current}: conversion to {opset} failed ({failure})."
        return PassResult(model, False, (note,))
    newer = operators_above(base, NEWEST_OPSET)
    if newer:
        raise GraphError(
            "opset-conversion",
            f"the graph's opset {current} cannot be converted to {requested}",
            why=f"engines run {OLDEST_OPSET} to {NEWEST_OPSET}; newer: {', '.join(newer)}",
            hint=f"export the model without them, with opset_version={requested}",
        )
    raise GraphError(
        "opset-conversion",
        f"the graph's opset {current} cannot be converted to {opset}",
        why=f"{failure}\nengines run {OLDEST_OPSET} to {NEWEST_OPSET}",
        hint=f"export the model again with opset_version={opset}",
    )


def _restated(model: ModelProto, opset: int) -> ModelProto:
    """Return a copy that imports another opset, with its nodes unchanged.

    onnx's converter cannot go back for operators that only gained types in a newer opset
    (ConstantOfShape of 20, 21 and 23). If such a graph passes the full check at the older opset,
    every operator has its attributes there; the comparison with the original proves the rest.
    """
    restated = copied(model)
    for entry in restated.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = opset
    return restated


def _expanded(model: ModelProto, opset: int) -> ModelProto:
    """Replace operators that an older opset lacks by their function bodies, if they have one.

    Attention and RMSNormalization of opset 23 are such functions.
    """
    import onnx.inliner
    import onnx.shape_inference

    newer = [("", kind) for kind in _newer_than(model, opset)]
    if not newer:
        return model
    typed = copied(model)
    # The inliner needs the types of all inputs, and does not take them from initializers.
    for tensor in typed.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        typed.graph.value_info.append(value)
    typed = onnx.shape_inference.infer_shapes(typed)
    expanded = onnx.inliner.inline_selected_functions(typed, newer, inline_schema_functions=True)
    del expanded.graph.value_info[:]
    return expanded


def operators_above(model: ModelProto, opset: int) -> list[str]:
    """Return the operators that are newer than an opset, as `TensorScatter (24)`."""
    operators = []
    for kind in _newer_than(model, opset):
        operators.append(f"{kind} ({_first_version(kind)})")
    return operators


def _newer_than(model: ModelProto, opset: int) -> list[str]:
    """Return the sorted types of operators that an opset does not have."""
    return [kind for kind in standard_operators(model.graph) if _first_version(kind) > opset]


def needed_opset(model: ModelProto) -> int:
    """Return the oldest opset that has every operator of the model.

    Exporters write operators of a newer opset than requested (DeformConv of opset 19).
    """
    return max(map(_first_version, standard_operators(model.graph)), default=1)


def _first_version(kind: str) -> int:
    # Gelu is of opset 20; an operator that this onnx does not know counts as an old one.
    return _first_versions().get(kind, 1)


@functools.cache
def _first_versions() -> dict[str, int]:
    """Map each operator of ONNX to the opset that introduced it: {"Gelu": 20, ...}."""
    import onnx.defs

    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            # The history has one schema per change: Gelu once, Cast at 1, 6, 9, 13, 19, ...
            version = int(schema.since_version)
            first[schema.name] = min(version, first.get(schema.name, version))
    return first


def external_bytes(model: ModelProto) -> int:
    """Sum the declared lengths of the weights that the model stores in other files."""
    from onnx.external_data_helper import uses_external_data

    total = 0
    for tensor in filter(uses_external_data, tensors(model)):
        for entry in tensor.external_data:
            if entry.key == "length":
                total += int(entry.value)
    return total
