"""Limits of fp16, and the reason why an operator stays float32.

Operators that compute in fp16 have fp16 kernels both in onnxruntime's CUDA provider
(docs/OperatorKernels.md in its sources) and in TensorRT: `Trait.HALF`.
"""

from __future__ import annotations

import onnx

from edgepack.onnx_tools.operators import Trait, operator
from edgepack.onnx_tools.walk import is_standard

LARGEST = 65504.0
"""The largest fp16 number."""

SMALLEST_NORMAL = 2.0**-14
"""Below it an fp16 number loses bits, one for each halving, until 2**-24."""

LARGEST_ANGLE = 8.0
"""A larger angle is rounded by more than 2**-9, a ninth of a degree (seen in rotary embeddings)."""

LARGEST_WHOLE = 2048.0
"""fp16 skips some whole numbers above this one."""


def why_not(node: onnx.NodeProto) -> str:
    """Return the reason why a node stays float32; "" if it need not."""
    if not is_standard(node):
        return f"{node.domain}.{node.op_type} is not a standard ONNX operator"
    # Floor has a reason of its own in the table; Det, say, has no row.
    row = operator(node.op_type)
    if Trait.HALF in row.traits:
        return ""
    return row.no_half or "it has no known fp16 kernel in CUDA and TensorRT"
