"""Static int8 quantization: from a float32 ONNX model and samples to a Q/DQ one.

prepare      constants as initializers, spatial means as pools
place        what becomes integer, and what stays float with the reason
order        which input channels stand beside each other, where that is free (channels)
observe      exact ranges, then histograms, streamed
calibrators  from a histogram to a range;  scheme: from a range to scale and zero point
moments      what every layer reads: means and second moments, streamed
weights      scale, pair-safe rounding (rounding) and bias correction (correct)
emit         the Q/DQ graph;  fused: what onnxruntime makes of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress

if TYPE_CHECKING:
    import onnx


def quantize(
    model: onnx.ModelProto, samples: Samples, options: QuantizeOptions, progress: Progress
) -> PassResult[Any]:
    """Quantize a model to int8; the model given is left as it is.

    Args:
        model: float32, simplified, opset 13 to 21, weights in the proto.
        samples: calibration samples; read several times, held a batch at a time.
        options: scheme, range, calibrator, rounding.
        progress: told the samples that were run.

    Returns:
        The Q/DQ model, which any onnxruntime from 1.19 runs in integer kernels, and the figures
        for the ledger (see `summary.details`).

    Raises:
        ChainError: quantize-opset, quantize-exclude-unknown, quantize-nothing-to-do,
            quantize-calibration-empty, quantize-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    from edgepack.chain.quantize.run import Run

    return Run(model, samples, options, progress).result()


__all__ = ["QuantizeOptions", "quantize"]
