"""An ONNX file comes in, at the operator set that the target's engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from edgepack.errors import GraphError
from edgepack.graph.names import strip_metadata
from edgepack.graph.outputs import state_inputs
from edgepack.graph.proto import NEWEST_OPSET, copied, default_opset, require_size, walk_graphs
from edgepack.graph.simplify import check_failure
from edgepack.ledger import PassResult
from edgepack.runtime.tensor import Tensor

OLDEST_OPSET = 13
"""Per-channel quantization (`QuantizeLinear` with an axis) begins here."""


def load_onnx(path: Path, opset: int, inputs: Sequence[Tensor] = ()) -> PassResult[Any]:
    """Load an ONNX file with its external data into one message, at the target's opset.

    Args:
        path: the file; external data stands beside it.
        opset: version of the default operator set that is wanted.
        inputs: the axes that its inputs are to state; those that are left out keep their own.

    Raises:
        GraphError: `onnx-unreadable`, `external-data` where a data file is missing or too
            short, `graph-too-large`, and what `to_opset` raises.
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
    return to_opset(state_inputs(model, inputs), opset)


def _fill_sparse(model: Any, path: Path) -> None:
    """Write sparse initializers out in full, in place: onnx's shape inference takes no others."""
    import numpy as np
    from onnx import numpy_helper

    for graph in walk_graphs(model.graph):
        for sparse in graph.sparse_initializer:
            values = numpy_helper.to_array(sparse.values, str(path.parent))
            places = numpy_helper.to_array(sparse.indices, str(path.parent))
            require_size(prod(sparse.dims) * values.itemsize, sparse.values.name)
            full = np.zeros(tuple(sparse.dims), values.dtype)
            full[np.unravel_index(places, full.shape) if places.ndim == 1 else (*places.T,)] = (
                values
            )
            graph.initializer.append(numpy_helper.from_array(full, sparse.values.name))
        del graph.sparse_initializer[:]


def to_opset(model: Any, opset: int) -> PassResult[Any]:
    """The model at a newer (or, above what engines run, older) default operator set.

    Where onnx's converter fails, or its result does not pass the full check (it does not
    convert the branches of `If` and `Loop`), the model keeps an opset that engines run, and
    the note says why.

    Raises:
        GraphError: `opset-conversion` where conversion fails and the model's own opset is below
            `OLDEST_OPSET` or above `NEWEST_OPSET`.
    """
    import onnx.inliner
    import onnx.version_converter

    own = default_opset(model)
    if opset <= own <= NEWEST_OPSET:
        reason = "" if own == opset else f"; the target asks for {opset}"
        return PassResult(model, False, (f"The graph is at opset {own} already{reason}.",))
    base = copied(model)
    strip_metadata(base)
    if base.functions:
        base = onnx.inliner.inline_local_functions(base)
    try:
        converted = onnx.version_converter.convert_version(base, opset)
        failure = check_failure(converted)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        failure = " ".join(str(error).split())[:300]
    if not failure:
        return PassResult(converted, True, (f"Opset {own} was converted to {opset}.",))
    if OLDEST_OPSET <= own <= NEWEST_OPSET:
        note = f"The graph stays at opset {own}: conversion to {opset} failed ({failure})."
        return PassResult(model, False, (note,))
    raise GraphError(
        "opset-conversion",
        f"the graph's opset {own} cannot be converted to {opset}",
        why=f"{failure}\nengines run {OLDEST_OPSET} to {NEWEST_OPSET}",
        hint=f"export the model again with opset_version={opset}",
    )


def external_bytes(model: Any) -> int:
    """The bytes of weights that the model keeps in other files, by its own account."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    total = 0
    for tensor in _get_all_tensors(model):
        if uses_external_data(tensor):
            total += sum(int(e.value) for e in tensor.external_data if e.key == "length")
    return total
