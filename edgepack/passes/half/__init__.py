"""Convert a float32 ONNX model to fp16, with float32 inputs and outputs.

convert       the pass
candidates    nodes that could become fp16
operators     operators with fp16 kernels, and the sums that they compute
sums          a graph that bounds the largest partial sum of a node
measurements  ranges, rounding losses and sums over the samples, streamed
placement     nodes that become fp16, and the reason for every node that stays float32
mixed_graph   the graph with Casts between the two types
figures       figures and notes for the ledger

fp16 has 11 bits of precision and a range that networks do exceed: values above 65504 become
infinity, values below 6e-5 lose bits, values below 6e-8 become 0. A node stays float32 if a sample
brings its inputs, outputs or partial sums near those limits; the report names the node and the
measured number. Nothing is clamped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress
from edgepack.passes.half.options import HalfOptions
from edgepack.passes.protocol import GraphPass

if TYPE_CHECKING:
    import onnx


def half(
    model: onnx.ModelProto, samples: Samples | None, options: HalfOptions, progress: Progress
) -> PassResult[Any]:
    """Convert a model to fp16 wherever its values allow; the argument is not modified.

    Args:
        model: float32 or quantized (Q/DQ), opset 13 to 21, weights in the proto.
        samples: calibration samples; one batch is in memory at a time.
        options: margin, and nodes that stay float32.
        progress: receives the number of samples run.

    Returns:
        The model with unchanged inputs and outputs, and the figures for the ledger (see
        `figures.details`). Its `value_info` names every fp16 tensor, since the loader needs them
        (see `runtime.session.rounding`).

    Raises:
        ChainError: calibration-missing, half-opset, half-keep-unknown, half-nothing-to-do,
            half-calibration-empty, half-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    from edgepack.passes.half.convert import convert

    if samples is None:
        raise ChainError(
            "calibration-missing",
            "half needs calibration samples",
            why="none were given, and without them values that overflow in fp16 go unnoticed",
            hint="--calibration PATH, with 100 or more samples like those on the device\n"
            "(--random-calibration builds without them, and its verdict is UNVERIFIED)",
        )
    return convert(model, samples, options, progress)


class Half(GraphPass[HalfOptions]):
    """Convert a float32 model to fp16."""

    name = "half"
    options = HalfOptions

    def precision(self, options: HalfOptions) -> str:
        """Return "fp16"."""
        return "fp16"

    def apply(
        self, model: onnx.ModelProto, samples: Samples | None, options: HalfOptions,
        progress: Progress,
    ) -> PassResult[onnx.ModelProto]:  # fmt: skip
        """Convert a model wherever its values allow."""
        return half(model, samples, options, progress)


__all__ = ["Half", "HalfOptions", "half"]
