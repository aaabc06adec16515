"""Input axes with a declared size of 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.onnx_tools.walk import fed_inputs

if TYPE_CHECKING:
    from onnx import ModelProto


def free_zero_axes(model: ModelProto) -> bool:
    """Make every input axis with a declared size of 0 or less dynamic, in place.

    Exporters write 0 for an unknown size, but onnxruntime takes it literally and would accept
    empty arrays only. An axis that is meant to be empty (a KV cache) may still be.

    Returns True if some axis had a size of 0.
    """
    freed = False
    for value in fed_inputs(model.graph):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                freed = freed or dim.dim_value == 0
                dim.Clear()
    return freed
