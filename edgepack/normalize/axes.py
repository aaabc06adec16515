"""Axes of a graph's inputs whose size the file states as 0."""

from __future__ import annotations

from typing import Any


def free_zero_axes(model: Any) -> bool:
    """Leave the size of every input axis that is stated as 0 or less open, in place.

    Exporters write 0 for an unknown size, and onnxruntime takes it for the number: nothing but an
    empty array could be fed. An axis that is meant to be empty (a KV cache) can be so still.

    Returns whether some axis was stated as 0.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    freed = False
    for value in model.graph.input:
        if value.name in weights:
            continue
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                freed = freed or dim.dim_value == 0
                dim.Clear()
    return freed
