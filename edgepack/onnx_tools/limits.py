"""Limits of the format and of the engines, and the opset of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import GraphError
from edgepack.onnx_tools.walk import DEFAULT_DOMAINS

if TYPE_CHECKING:
    from onnx import ModelProto

PROTOBUF_LIMIT = 2**31 - 1
"""Longest protobuf message in bytes; edgepack ships the graph as one message."""

OLDEST_ONNXRUNTIME = "1.19"
"""Oldest onnxruntime supported, the newest with wheels for Python 3.8."""

NEWEST_IR = 10
"""The newest IR version that the oldest supported onnxruntime reads."""

NEWEST_OPSET = 21
"""The newest default opset that the oldest supported onnxruntime runs."""

OLDEST_OPSET = 13
"""Per-channel quantization (`QuantizeLinear` with an axis) begins here, and Softmax has had its
meaning since."""


def default_opset(model: ModelProto) -> int:
    """Return the version of the default operator set that the model imports, 1 without one."""
    # A file may import the domain twice, under both of its spellings.
    versions = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    return int(max(versions, default=1))


def require_size(size: int, what: str) -> None:
    """Raise GraphError `graph-too-large` if `size` bytes do not fit one protobuf message."""
    if size > PROTOBUF_LIMIT:
        raise GraphError(
            "graph-too-large",
            f"{what} is too large for one ONNX file",
            why=f"{size / 1e9:.2f} GB of weights; a protobuf message holds at most 2.15 GB",
            hint="factorize or prune the model, or build a smaller variant of it",
        )
