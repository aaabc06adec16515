"""fp16 with float32 inputs and outputs: from a float32 ONNX model and samples.

operators   which operators have fp16 kernels, and what each of them sums up
sums        the graph that measures the largest partial sum of a node
measure     ranges, rounding losses and sums over the samples, streamed
place       what becomes fp16, and what stays float32 with the reason
emit        the graph, with Casts where the two meet

fp16 has 11 bits of precision like nothing else, and a range that networks really leave: above
65504 there is infinity, below 6e-5 bits are lost, below 6e-8 there is 0. A node stays float32
where a sample comes near that in what it reads, makes or sums up on the way, and is named with
the number that was measured. Nothing is clamped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.chain.half.options import HalfOptions
from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress

if TYPE_CHECKING:
    import onnx


def half(
    model: onnx.ModelProto, samples: Samples | None, options: HalfOptions, progress: Progress
) -> PassResult[Any]:
    """Bring a model to fp16 where its values allow it; the model given is left as it is.

    Args:
        model: float32 or quantized (Q/DQ), opset 13 to 21, weights in the proto.
        samples: calibration samples, held a batch at a time.
        options: margin, nodes that stay float32.
        progress: told the samples that were run.

    Returns:
        The model with inputs and outputs as before, whose `value_info` names every fp16 tensor
        (the loader needs to know them, see `runtime.session.rounding`), and the figures for the
        ledger (see `summary.details`).

    Raises:
        ChainError: calibration-missing, half-opset, half-keep-unknown, half-nothing-to-do,
            half-calibration-empty, half-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    from edgepack.chain.half.run import convert

    if samples is None:
        raise ChainError(
            "calibration-missing",
            "half needs calibration samples",
            why="it measures on them what would overflow in fp16, and none were given",
            hint="--calibration PATH, 100 or more samples as the device will see them\n"
            "(--random-calibration builds without, and marks the report as not proven)",
        )
    return convert(model, samples, options, progress)


__all__ = ["HalfOptions", "half"]
