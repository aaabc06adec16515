"""Figures and notes of the modes without stored ranges for the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice
from edgepack.passes.quantize.dynamic_and_weight_only.integer_graph import IntegerWeights
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.static.figures import (
    float_layer_figures,
    float_layer_notes,
    pair_figures,
    pair_note,
)

# Kernels that multiply integers by integers or by float.
KERNELS = (
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeLSTM"),
    "MatMulNBits",
)


def details(
    choice: Choice,
    options: QuantizeOptions,
    integers: IntegerWeights,
    operators: Mapping[str, int],
    reordered: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures as JSON values.

    Args:
        choice: nodes that became integer, and layers that stay float.
        options: of the pass.
        integers: of those nodes, and possibly of others.
        operators: number of nodes by operator, after onnxruntime's fusions.
        reordered: number of layers whose input channels were reordered.
        seconds: of every phase.
    """
    dynamic = options.mode == "dynamic"
    eight = [layer for layer in choice.layers if layer.index in integers.weights]
    pairs = [integers.weights[layer.index].factor for layer in eight]
    for index in choice.others:
        pairs += [constant.factor for constant in integers.constants[index]]
    return {
        "mode": options.mode,
        "scheme": options.scheme,
        "range": options.range if dynamic else None,
        "bits": options.bits,
        "block": options.block,
        "rounding": options.rounding,
        "bias_correction": options.bias_correction,
        "calibration_samples": integers.samples,
        "layers_quantized": choice.count,
        "layers_in_blocks": len(choice.layers) - len(eight),
        "tables_quantized": len(choice.tables),
        "layers_float": float_layer_figures(choice.float_layers),
        "pair_safe": pair_figures(pairs, reordered) if options.range == "pair-safe" else None,
        "integer_only": False,
        "kernels": {kind: operators[kind] for kind in KERNELS if kind in operators},
        "seconds": dict(seconds),
    }


def notes(choice: Choice, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures as sentences."""
    quantized, total = figures["layers_quantized"], choice.count + len(choice.float_layers)
    if figures["mode"] == "dynamic":
        sentences = [
            f"{quantized} of {total} layers quantized to int8; their inputs are quantized at run "
            "time, each tensor by its own range, so that an output depends slightly on its batch."
        ]
    elif figures["bits"] == 4:
        sentences = [
            f"{quantized} of {total} layers store integer weights: "
            f"{figures['layers_in_blocks']} in four bits with blocks of {figures['block']}, the "
            "others in eight; the arithmetic stays float, so this saves bytes but no time."
        ]
    else:
        sentences = [
            f"{quantized} of {total} layers store int8 weights, converted to float32 when the "
            "model is loaded: this saves bytes in the file, but neither time nor memory."
        ]
    if choice.tables:
        sentences.append(
            f"{len(choice.tables)} of them are tables of embeddings, with one scale per row."
        )
    if figures["calibration_samples"]:
        sentences.append(
            f"Weights rounded ({figures['rounding']}) for the layers' inputs on "
            f"{figures['calibration_samples']} calibration samples."
        )
    sentences += float_layer_notes(choice.float_layers)
    if figures["pair_safe"] is not None and figures["pair_safe"]["channels"]:
        sentences.append(pair_note(figures["pair_safe"]))
    return tuple(sentences)
