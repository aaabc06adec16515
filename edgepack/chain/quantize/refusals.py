"""What the pass refuses, whatever its mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from edgepack.chain.graphs.names import check_names
from edgepack.chain.graphs.view import GraphView
from edgepack.errors import ChainError
from edgepack.normalize import integer_operators

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
            "the model is quantized already",
            why=f"it holds {', '.join(kinds)}",
            hint="bundle and verify it as it is: --chain none; or give the float model",
        )


def nothing_to_do(float_layers: Sequence[tuple[str, str, str]]) -> ChainError:
    """The error for a graph of which nothing can become integer.

    Args:
        float_layers: (name, operator, reason) of its layers.
    """
    reasons = [f"{name} ({kind}): {reason}" for name, kind, reason in float_layers]
    listing = "\n".join(reasons[:8])
    more = f"\nand {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return ChainError(
        "quantize-nothing-to-do",
        "no layer of the model can be quantized",
        why=listing + more or "the graph has no convolution, Gemm or MatMul",
        hint="build it without the pass: --chain none",
    )


def no_samples(mode: str) -> ChainError:
    """The error for options that need calibration samples where there are none."""
    return ChainError(
        "quantize-calibration-empty",
        "the model cannot be calibrated",
        why=f"no samples were given, and the mode {mode!r} needs them with these options",
        hint="give calibration samples, or quantize:mode=dynamic:rounding=nearest",
    )
