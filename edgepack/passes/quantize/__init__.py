"""Quantize a float32 ONNX model to int8, in three modes.

static       weights and activations, calibrated on samples: a Q/DQ graph (`static`)
dynamic      weights, and activations with ranges taken at run time (`dynamic_and_weight_only`)
weights      weights only, in eight bits or four (`dynamic_and_weight_only`)

prepare      constants as initializers, spatial means as pools
layers       linear layers as matrices in one order
scheme       from a range to scale and zero point
calibration  ranges, histograms and moments, streamed over the samples
weights      pair-safe rounding, int8 and int4 weights, order of the input channels
equalize     optional scaling of channels to similar magnitudes
repair       quantizations with some layers in float, ranked and searched
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.repair import make_trials

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
        A model for any onnxruntime from 1.19, and the figures for the ledger (`static.figures`,
        `dynamic_and_weight_only.weight_figures`).

    Raises:
        ChainError: quantize-already, quantize-opset, quantize-exclude-unknown,
            quantize-nothing-to-do, quantize-calibration-empty, quantize-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    return make_trials(model, samples, options, progress).result()


__all__ = ["QuantizeOptions", "make_trials", "quantize"]
