"""TorchScript to ONNX, by the exporter that walks the TorchScript graph."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.graph.agreement import disagreement, floor_db
from edgepack.graph.exporting import exporting
from edgepack.graph.opset import cast_up
from edgepack.graph.proto import NEWEST_OPSET
from edgepack.graph.reads import input_read
from edgepack.graph.run import Runner
from edgepack.graph.sizes import candidate_sizes, resized
from edgepack.runtime.tensor import Tensor

NEWEST_SCRIPT_OPSET = 18
"""The newest opset whose operators this exporter knows completely."""

SIZES_TRIED = 3
"""Other sizes of each dynamic axis at which a trace is compared with its module."""


_ADDED_IN = re.compile(r"added in version (\d+)")


def export_script(module: Any, inputs: Sequence[Tensor], args: tuple[Any, ...], opset: int) -> Any:
    """Export a TorchScript module as it is, any other module after tracing it.

    TorchScript keeps loops and branches that `torch.export` cannot hold, and torch's converter
    from it to an `ExportedProgram` fixes the axes of recurrent layers: hence this exporter.

    Returns:
        An `onnx.ModelProto` at `opset` or `NEWEST_SCRIPT_OPSET`, whichever is older; at a newer
        one only where an operator exists in no older one.
    """
    import torch

    # The exporter's C++ half prints the whole graph when it fails, past Python's streams.
    torch._C._jit_set_onnx_log_enabled(False)
    version = min(opset, NEWEST_SCRIPT_OPSET)
    try:
        return _export_script(module, inputs, args, version)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        needed = _ADDED_IN.search(str(error))
        if needed is None or not version < int(needed.group(1)) <= NEWEST_OPSET:
            raise
        return _export_script(module, inputs, args, int(needed.group(1)))


def _export_script(module: Any, inputs: Sequence[Tensor], args: tuple[Any, ...], opset: int) -> Any:
    import onnx
    import torch

    dynamic = {
        tensor.name: {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in inputs
    }
    buffer: Any = io.BytesIO()
    with exporting():
        torch.onnx.export(
            module,
            args,
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=[tensor.name for tensor in inputs],
            dynamic_axes=dynamic,
        )
    return onnx.load_from_string(buffer.getvalue())


def trace_module(
    module: Any,
    inputs: Sequence[Tensor],
    args: tuple[Any, ...],
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    opset: int,
) -> Any | None:
    """Export a module by tracing and prove it at other sizes of every dynamic axis.

    torch.export unrolls recurrent layers over the time axis in some models, and fails on others;
    a trace keeps them whole. A trace follows one path through the code, so it is compared with the
    module on the example and at other sizes, and refused where the path depends on the values that
    are fed.

    Args:
        module: in eval mode, on the CPU.
        inputs: name, type and shape of each input.
        args: the example as tensors, in the order of the inputs.
        arrays: the example as arrays.
        sizes: of each dynamic axis in the example.
        opset: version of ONNX's operators.

    Returns None where the trace fails or computes something else.
    """
    try:
        if input_read(module, args):
            return None
        model = export_script(module, inputs, args, opset)
        ready, promoted = cast_up(model, for_passes=True)
        if _differs(module, inputs, ready, arrays, sizes, floor_db(promoted)):
            return None
    except Exception:  # noqa: BLE001 - the error to report is that of torch.export
        return None
    return model


def _differs(
    module: Any,
    inputs: Sequence[Tensor],
    model: Any,
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    floor: float,
) -> bool:
    """Compare a graph with its module on the example and at three more sizes of each axis.

    Sizes that the module itself refuses are passed over, as in `check_dynamic_axes`; an axis of
    which it takes no other size proves nothing, and counts as a difference.
    """
    runner = Runner(model)
    feeds = [dict(arrays)]
    for name, size in sizes.items():
        others = (resized(inputs, arrays, {**sizes, name: n}) for n in candidate_sizes(size))
        accepted = (fed for fed in others if _accepts(module, inputs, fed))
        tried = list(itertools.islice(accepted, SIZES_TRIED))
        if not tried:
            return True
        feeds += tried
    return any(
        disagreement(_answers(module, inputs, fed), runner.run(fed), runner.output_names, floor)
        for fed in feeds
    )


def _accepts(module: Any, inputs: Sequence[Tensor], fed: Mapping[str, np.ndarray]) -> bool:
    try:
        _answers(module, inputs, fed)
    except Exception:  # noqa: BLE001 - the user's code: any error is a refusal
        return False
    return True


def _answers(
    module: Any, inputs: Sequence[Tensor], fed: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    import torch

    with torch.no_grad():
        result = module(*(torch.from_numpy(fed[tensor.name]) for tensor in inputs))
    leaves = torch.utils._pytree.tree_leaves(result)
    return tuple(np.asarray(leaf) for leaf in leaves)
