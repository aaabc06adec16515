"""Dynamic axes that torch.export turned into constants, and the responsible line of the model."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.errors import GraphError
from edgepack.graph.quiet import muted
from edgepack.graph.sizes import dynamic_axes
from edgepack.graph.trace import innermost_model_frame, model_line
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor as TorchTensor
    from torch.nn import Module


def frozen_axis(inputs: Sequence[Tensor], model: ModelProto) -> tuple[Tensor, int, int] | None:
    """Find the first axis that is declared dynamic but is a number in the graph.

    torch.onnx silently follows torch.export's suggestions to make such axes static.

    Returns:
        The input, the axis's position and its size in the graph; None if no axis froze.
    """
    # An input declared as (batch, 3) that is (2, 3) in the graph yields the axis 0 and the size 2.
    for tensor, value in zip(inputs, model.graph.input, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, (dim, exported_dim) in enumerate(zip(tensor.shape, dims, strict=True)):
            if isinstance(dim, str) and exported_dim.HasField("dim_value"):
                return tensor, axis, int(exported_dim.dim_value)
    return None


def frozen_error(frozen: tuple[Tensor, int, int], line: str | None) -> GraphError:
    """Return the error `axis-frozen` for a result of `frozen_axis`."""
    tensor, axis, size = frozen
    name = tensor.shape[axis]
    why = f"the graph accepts only {size} there"
    if line:
        why += f"\nat {line}"
    return GraphError(
        "axis-frozen",
        f"the dynamic axis {name} (axis {axis} of {tensor.name}) froze in the export",
        why=why,
        hint="take the size from the tensor (x.shape[...], without int()) instead of a number, "
        f"or declare it fixed: {size} for {name}",
    )


def freezing_line(
    module: Module, inputs: Sequence[Tensor], args: tuple[TorchTensor, ...]
) -> str | None:
    """Return the line of the model at which torch specializes a dynamic axis to one size.

    torch logs "Specializing ..." at that moment, and the handler inspects the stack it runs on.
    """
    import torch
    import torch.fx.experimental._config as config

    watch = _Watch()
    shapes = tuple(dict.fromkeys(dynamic_axes(tensor), torch.export.Dim.AUTO) for tensor in inputs)
    # The handler replaces the logger's own, so that no record reaches the terminal meanwhile.
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [watch], False
    log.setLevel(logging.WARNING)
    try:
        with muted(), config.patch(print_specializations=True):
            torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # noqa: BLE001 - the axis is reported either way
        return watch.line or model_line(error)
    finally:
        log.handlers, log.propagate = before[0], before[1]
        log.setLevel(before[2])
    return watch.line


class _Watch(logging.Handler):
    """Handler that remembers the model's line of the first "Specializing" record."""

    line: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.line is None and "Specializing" in str(record.msg):
            self.line = innermost_model_frame(traceback.extract_stack())
