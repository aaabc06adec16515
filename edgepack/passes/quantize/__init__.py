"""Quantize a float32 ONNX model to int8, in three modes.

static       weights and activations, calibrated on samples: a Q/DQ graph (`run`)
dynamic      weights, and activations with ranges taken at run time (`unranged`)
weights      weights only, in eight bits or four (`unranged`)

Modules of the static mode, some of which the others use as well:

graphs       (beside this package) edges, streamed runs, unused initializers
equalize     optional scaling of channels to similar magnitudes
prepare      constants as initializers, spatial means as pools
place        nodes that become integer, and the reason for every layer that stays float
order        order of input channels, where it is free (channels)
observe      exact ranges, then histograms, streamed
calibrators  from a histogram to a range;  scheme: from a range to scale and zero point
moments      means and second moments of every layer's input, streamed
weights      scale, pair-safe rounding (rounding) and bias correction (correct)
emit         the Q/DQ graph;  fused: the same after onnxruntime's fusions
trials       variants with some layers in float, ranked and searched for a repair
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.trials import make_trials

if TYPE_CHECKING:
    import onnx


def quantize(
    model: onnx.ModelProto,
    samples: Samples | None,
    options: QuantizeOptions,
    progress: Progress,
) -> PassResult[Any]:
    """Quantize a model; the argument is not modified.

    Args:
        model: float32, simplified, opset 13 to 21, weights in the proto.
        samples: calibration samples, if the options need them; they are read several times, with
            one batch in memory at a time.
        options: mode, scheme, range, calibrator, rounding.
        progress: receives the number of samples run.

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
