"""Bring an ONNX model into the form that the build expects, without changing its results."""

from __future__ import annotations

from edgepack.normalize.axes import free_zero_axes
from edgepack.normalize.external import set_lengths, tensor_bytes, tensors
from edgepack.normalize.floats import promote_floats, types_to_promote
from edgepack.normalize.fused import split_fused
from edgepack.normalize.modes import batch_dependent, integer_operators, random_dropouts
from edgepack.normalize.order import sort_nodes

__all__ = [
    "batch_dependent",
    "free_zero_axes",
    "integer_operators",
    "promote_floats",
    "random_dropouts",
    "set_lengths",
    "sort_nodes",
    "split_fused",
    "tensor_bytes",
    "tensors",
    "types_to_promote",
]
