"""int8 quantization of a float32 ONNX model, in three modes.

static       weights and activations, by samples: a Q/DQ graph (`run`)
dynamic      weights, and activations by ranges of run time (`unranged`)
weights      weights alone, in eight bits or four (`unranged`)

The parts of the static one, some of which the others use as well:

graphs       (beside this package) edges, streamed runs, left-overs
equalize     channels of like size, where asked
prepare      constants as initializers, spatial means as pools
place        what becomes integer, and what stays float with the reason
order        which input channels stand beside each other, where that is free (channels)
observe      exact ranges, then histograms, streamed
calibrators  from a histogram to a range;  scheme: from a range to scale and zero point
moments      what every layer reads: means and second moments, streamed
weights      scale, pair-safe rounding (rounding) and bias correction (correct)
emit         the Q/DQ graph;  fused: what onnxruntime makes of it
trials       the same with layers left float, ranked and searched for a repair
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.trials import make_trials
from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress

if TYPE_CHECKING:
    import onnx


def quantize(
    model: onnx.ModelProto,
    samples: Samples | None,
    options: QuantizeOptions,
    progress: Progress,
) -> PassResult[Any]:
    """Quantize a model; the model given is left as it is.

    Args:
        model: float32, simplified, opset 13 to 21, weights in the proto.
        samples: calibration samples, where the options need them; read several times, held a
            batch at a time.
        options: mode, scheme, range, calibrator, rounding.
        progress: told the samples that were run.

    Returns:
        A model for any onnxruntime from 1.19, and the figures for the ledger (`summary.details`,
        `summary_unranged.details`).

    Raises:
        ChainError: quantize-already, quantize-opset, quantize-exclude-unknown,
            quantize-nothing-to-do, quantize-calibration-empty, quantize-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    return make_trials(model, samples, options, progress).result()


__all__ = ["QuantizeOptions", "make_trials", "quantize"]
