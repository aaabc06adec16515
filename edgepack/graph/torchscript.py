"""Export of TorchScript to ONNX, with the exporter that converts the TorchScript graph."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.graph.agreement import disagreement, floor_db
from edgepack.graph.exporting import exporting
from edgepack.graph.opset import cast_up
from edgepack.graph.reads import input_read
from edgepack.graph.run import Runner
from edgepack.graph.sizes import candidate_sizes, dynamic_axes, resize_axes
from edgepack.onnx_tools.limits import NEWEST_OPSET
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor as TorchTensor
    from torch.nn import Module

NEWEST_SCRIPT_OPSET = 18
"""Newest opset that this exporter supports completely."""

SIZES_TRIED = 3
"""Number of other sizes of each dynamic axis at which a trace is compared with its module."""

_ADDED_IN = re.compile(r"added in version (\d+)")


def export_script(
    module: Module, inputs: Sequence[Tensor], args: tuple[TorchTensor, ...], opset: int
) -> ModelProto:
    """Export a TorchScript module directly, and any other module after tracing it.

    TorchScript has loops and branches that `torch.export` cannot represent, and torch's converter
    from it to an `ExportedProgram` fixes the axes of recurrent layers. Hence this exporter.

    Returns:
        An `onnx.ModelProto` at the older of `opset` and `NEWEST_SCRIPT_OPSET`, or at a newer one
        if no older one has some operator.
    """
    import torch

    # The C++ half of the exporter prints the whole graph when it fails, bypassing Python's streams.
    # Its Python half turns that on again in each export, so the printing itself is replaced.
    torch._C._jit_onnx_log = _ignore
    version = min(opset, NEWEST_SCRIPT_OPSET)
    try:
        return _export_script(module, inputs, args, version)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        # "... Support for this operator was added in version 20, try exporting with this version."
        needed = _ADDED_IN.search(str(error))
        if needed is None or not version < int(needed.group(1)) <= NEWEST_OPSET:
            raise
        return _export_script(module, inputs, args, int(needed.group(1)))


def _ignore(*_: Any) -> None:
    pass


def _export_script(
    module: Module, inputs: Sequence[Tensor], args: tuple[TorchTensor, ...], opset: int
) -> ModelProto:
    import onnx
    import torch

    # Example: {"image": {0: "batch"}, "mask": {0: "batch", 1: "time"}}
    dynamic = {tensor.name: dynamic_axes(tensor) for tensor in inputs}
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
    module: Module,
    inputs: Sequence[Tensor],
    args: tuple[TorchTensor, ...],
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    opset: int,
) -> ModelProto | None:
    """Export a module by tracing and compare it at other sizes of every dynamic axis.

    In some models torch.export unrolls recurrent layers over the time axis, on others it fails; a
    trace keeps them whole. A trace follows one path through the code, so it is compared with the
    module on the example and at other sizes, and rejected if the path depends on input values.

    Args:
        module: in eval mode, on the CPU.
        inputs: name, type and shape of each input.
        args: the example as tensors, in the order of the inputs.
        arrays: the example as arrays.
        sizes: size of each dynamic axis in the example.
        opset: version of ONNX's operators.

    Returns None if the trace fails or its outputs differ from the module's.
    """
    try:
        # A read value would become a constant; sizes alone would not reveal it.
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
    module: Module,
    inputs: Sequence[Tensor],
    model: ModelProto,
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    floor: float,
) -> bool:
    """Compare a graph with its module on the example and at three other sizes of each axis.

    Sizes that the module rejects are skipped, as in `check_dynamic_axes`. An axis without any
    other accepted size proves nothing and counts as a difference.
    """
    # With batch 2 and time 5 in the example, the feeds are (2, 5), three others of batch with time
    # 5, and three others of time with batch 2.
    runner = Runner(model)
    feeds = [dict(arrays)]
    for name, size in sizes.items():
        other_feeds: list[dict[str, np.ndarray]] = []
        for candidate in candidate_sizes(size):
            feed = resize_axes(inputs, arrays, {**sizes, name: candidate})
            if len(other_feeds) < SIZES_TRIED and _accepts(module, inputs, feed):
                other_feeds.append(feed)
        if not other_feeds:
            return True
        feeds += other_feeds
    for feed in feeds:
        reference = _run_module(module, inputs, feed)
        if disagreement(reference, runner.run(feed), runner.output_names, floor):
            return True
    return False


def _accepts(module: Module, inputs: Sequence[Tensor], feed: Mapping[str, np.ndarray]) -> bool:
    try:
        _run_module(module, inputs, feed)
    except Exception:  # noqa: BLE001 - the user's code: any error is a refusal
        return False
    return True


def _run_module(
    module: Module, inputs: Sequence[Tensor], feed: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    import torch

    arguments = [torch.from_numpy(feed[tensor.name]) for tensor in inputs]
    with torch.no_grad():
        result = module(*arguments)
    # A module may return tensors in nested tuples, lists and dicts.
    leaves = torch.utils._pytree.tree_leaves(result)
    return tuple(map(np.asarray, leaves))
