"""Errors that the pass raises in every mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from edgepack.errors import ChainError
from edgepack.normalize import integer_operators
from edgepack.onnx_tools.names import check_names
from edgepack.onnx_tools.view import GraphView

if TYPE_CHECKING:
    import onnx


def check_excluded(view: GraphView, exclude: Collection[str]) -> None:
    """Raise ChainError quantize-exclude-unknown for a node that is not in the graph."""
    names = [node.name for node in view.nodes]
    check_names(exclude, names, "quantize-exclude-unknown", "float")


def check_not_quantized(model: onnx.ModelProto) -> None:
    """Raise ChainError quantize-already for a graph that holds quantized operators."""
    kinds = integer_operators(model)
    if kinds:
        raise ChainError(
            "quantize-already",
            "the model is already quantized",
            why=f"it holds {', '.join(kinds)}",
            hint="bundle and verify it unchanged with --chain none, or pass the float model",
        )


def nothing_to_do(float_layers: Sequence[tuple[str, str, str]]) -> ChainError:
    """Return the error for a graph without a layer that can become integer.

    Args:
        float_layers: (name, operator, reason) of its layers.
    """
    reasons = [f"{name} ({kind}): {reason}" for name, kind, reason in float_layers]
    listing = "\n".join(reasons[:8])
    if len(reasons) > 8:
        listing += f"\nand {len(reasons) - 8} more"
    return ChainError(
        "quantize-nothing-to-do",
        "no layer of the model can be quantized",
        why=listing or "the graph has no convolution, Gemm or MatMul",
        hint="build without this pass: --chain none",
    )


def no_samples(mode: str) -> ChainError:
    """Return the error for options that need calibration samples when there are none."""
    return ChainError(
        "quantize-calibration-empty",
        "the model cannot be calibrated",
        why=f"the mode {mode!r} needs calibration samples with these options",
        hint="pass calibration samples, or use quantize:mode=dynamic:rounding=nearest",
    )
