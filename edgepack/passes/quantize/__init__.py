"""Quantize a float32 ONNX model to int8, in three modes.

static       weights and activations, calibrated on samples: a Q/DQ graph (`static`)
dynamic      weights, and activations with ranges taken at run time (`dynamic_and_weight_only`)
weights      weights only, in eight bits or four (`dynamic_and_weight_only`)

options      the options of the pass
prepare      checks of a graph; constants as initializers, spatial means as pools
layers       linear layers as matrices in one order
scheme       from a range to scale and zero point
calibration  ranges, histograms and moments, streamed over the samples
weights      pair-safe rounding, int8 and int4 weights, order of the input channels
equalize     optional scaling of channels to similar magnitudes
figures      figures and notes for the ledger
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes.protocol import PartialPass, Trials
from edgepack.passes.quantize.options import NAME, QuantizeOptions

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
        A model for any onnxruntime from 1.19, and the figures for the ledger (`figures`).

    Raises:
        ChainError: quantize-already, quantize-opset, quantize-exclude-unknown,
            quantize-nothing-to-do, quantize-calibration-empty, quantize-calibration-nonfinite.
        DataError: a sample does not fit the model.
    """
    return make_trials(model, samples, options, progress).result()


def make_trials(
    model: onnx.ModelProto, samples: Samples | None, options: QuantizeOptions, progress: Progress
) -> Trials:
    """Return the quantizations that `quantize` can choose from; raises like `quantize`."""
    from edgepack.passes.quantize.prepare import check_not_quantized, no_samples

    check_not_quantized(model)
    if samples is None and options.needs:
        raise no_samples(options.mode)
    if options.mode == "static" and samples is not None:
        from edgepack.passes.quantize.static.quantizer import StaticQuantizer

        return StaticQuantizer(model, samples, options, progress)
    from edgepack.passes.quantize.dynamic_and_weight_only.weight_quantizer import WeightQuantizer

    return WeightQuantizer(model, samples, options, progress)


class Quantize(PartialPass[QuantizeOptions]):
    """Quantize a model to int8, or its weights to 8 or 4 bits."""

    name = NAME
    options = QuantizeOptions

    def precision(self, options: QuantizeOptions) -> str:
        """Return "int8", or "int4 weights" if only the weights are stored as integers."""
        if options.mode == "weights":
            return f"int{options.bits} weights"
        return "int8"

    def advice(self) -> str:
        """Suggest how to lose less quality."""
        return (
            "use more or better calibration samples, use another calibrator, train a torch model "
            "for int8 (--chain distill:aware=true,quantize)"
        )

    def apply(
        self, model: onnx.ModelProto, samples: Samples | None, options: QuantizeOptions,
        progress: Progress,
    ) -> PassResult[onnx.ModelProto]:  # fmt: skip
        """Quantize every layer that the options select."""
        return quantize(model, samples, options, progress)

    def partial(
        self, model: onnx.ModelProto, samples: Samples | None, options: QuantizeOptions,
        progress: Progress,
    ) -> Trials:  # fmt: skip
        """Return the quantizations that differ in the layers that stay float."""
        return make_trials(model, samples, options, progress)


__all__ = ["Quantize", "QuantizeOptions", "make_trials", "quantize"]
