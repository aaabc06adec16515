"""TorchScript to ONNX, by the exporter that walks the TorchScript graph."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.graph.agreement import disagreement
from edgepack.graph.quiet import quiet
from edgepack.graph.run import Runner
from edgepack.graph.sizes import candidate_sizes, resized
from edgepack.runtime.tensor import Tensor

NEWEST_SCRIPT_OPSET = 18
"""The newest opset whose operators this exporter knows completely."""


def export_script(module: Any, inputs: Sequence[Tensor], args: tuple[Any, ...], opset: int) -> Any:
    """Export a TorchScript module as it is, any other module after tracing it.

    TorchScript keeps loops and branches that `torch.export` cannot hold, and torch's converter
    from it to an `ExportedProgram` fixes the axes of recurrent layers: hence this exporter.

    Returns:
        An `onnx.ModelProto` at the opset asked for or `NEWEST_SCRIPT_OPSET`.
    """
    import onnx
    import torch

    # The exporter's C++ half prints the whole graph when it fails, past Python's streams.
    torch._C._jit_set_onnx_log_enabled(False)
    dynamic = {
        tensor.name: {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in inputs
    }
    buffer: Any = io.BytesIO()
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            args,
            buffer,
            dynamo=False,
            opset_version=min(opset, NEWEST_SCRIPT_OPSET),
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
    """The module exported by tracing, if that computes the same at every other size tried.

    torch.export unrolls recurrent layers over the time axis in some models; a trace keeps them
    whole. A trace follows one path through the code, so nothing is taken on trust here.
    """
    import torch

    def original(fed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(fed[tensor.name]) for tensor in inputs))
        leaves = torch.utils._pytree.tree_leaves(result)
        return tuple(np.asarray(leaf) for leaf in leaves)

    try:
        model = export_script(module, inputs, args, opset)
        runner = Runner(model)
        for name, size in sizes.items():
            for other in candidate_sizes(size)[:3]:
                fed = resized(inputs, arrays, {**sizes, name: other})
                if disagreement(original(fed), runner.run(fed), runner.output_names):
                    return None
    except Exception:  # noqa: BLE001 - the error to report is that the axis froze
        return None
    return model
