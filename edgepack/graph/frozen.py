"""Dynamic axes that torch.export made constants of, and the line of the model that caused it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from edgepack.errors import GraphError
from edgepack.graph.quiet import muted
from edgepack.graph.trace import innermost_model_frame, model_line
from edgepack.runtime.tensor import Tensor


def frozen_axis(inputs: Sequence[Tensor], model: Any) -> tuple[Tensor, int, int] | None:
    """The first axis that shall be dynamic and is a number in the graph.

    torch.onnx refines the dynamic shapes by torch.export's suggestions, without a word.

    Returns:
        The input, the axis's position and its size in the graph; None where none froze.
    """
    for tensor, value in zip(inputs, model.graph.input, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, (dim, made) in enumerate(zip(tensor.shape, dims, strict=True)):
            if isinstance(dim, str) and made.HasField("dim_value"):
                return tensor, axis, int(made.dim_value)
    return None


def frozen_error(found: tuple[Tensor, int, int], line: str | None) -> GraphError:
    """The error `axis-frozen` for what `frozen_axis` found."""
    tensor, axis, size = found
    name = tensor.shape[axis]
    return GraphError(
        "axis-frozen",
        f"the dynamic axis {name} (axis {axis} of {tensor.name}) froze in the export",
        why=f"the graph takes only {size} there" + (f"\nat {line}" if line else ""),
        hint="take the size from the tensor (x.shape[...], without int()) instead of a number, "
        f"or declare it fixed: {size} for {name}",
    )


def freezing_line(module: Any, inputs: Sequence[Tensor], args: tuple[Any, ...]) -> str | None:
    """The line of the model at which torch settles a dynamic axis on one size.

    torch logs "Specializing ..." at that moment; the handler looks at the stack it is called on.
    """
    import torch
    import torch.fx.experimental._config as config

    watch = _Watch()
    shapes = tuple(
        {a: torch.export.Dim.AUTO for a, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in inputs
    )
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
    """Keeps the model's line of the first "Specializing" record."""

    line: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.line is None and "Specializing" in str(record.msg):
            self.line = innermost_model_frame(traceback.extract_stack())
