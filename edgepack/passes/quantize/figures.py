"""Figures and notes of the quantization for the ledger, in every mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.listing import join_names
from edgepack.onnx_tools.operators import is_quantized, operator
from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import Affine, fit_affine, fit_symmetric
from edgepack.passes.quantize.static.forms import Form
from edgepack.passes.quantize.static.placement import Placement

# Quantizations of an activation that is 0 on every sample.
CONSTANT = (fit_affine(0.0, 0.0), fit_symmetric(0.0))
# First words of the note on the layers that have a form, by form.
_FORMS = {
    "dynamic": "Quantized to int8 at run time, so that an output depends slightly on its batch",
    "weights": "Int8 weights with float arithmetic",
    "table": "Int8 rows",
}


def collect_static_figures(
    placement: Placement,
    forms: Sequence[Form],
    options: QuantizeOptions,
    count: int,
    quantization: Mapping[str, Affine],
    factors: Sequence[np.ndarray],
    reordered: int,
    equalized: Mapping[str, Any] | None,
    float_counts: Mapping[str, int] | None,
    moments: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of the static mode as JSON values.

    Args:
        placement: nodes that became integer, and layers that stay float.
        forms: layers in another form than static int8.
        options: of the pass.
        count: number of calibration samples.
        quantization: of every root tensor.
        factors: by which the pair limit raised the scales of every static layer.
        reordered: number of layers whose input channels were reordered.
        equalized: figures of `equalize`; None if it did not run.
        float_counts: number of nodes by operator that round in float after onnxruntime's fusion;
            None if another engine fuses.
        moments: accuracy of the second moments, and the layers that are too wide for all of them;
            None if there are none.
        seconds: of every phase.
    """
    pairs = list(factors)
    for form in forms:
        # Forms that compute in float have no pairs to limit.
        if form.kind == "dynamic":
            for integers in form.integers:
                pairs.append(integers.factor)
    return {
        "mode": options.mode,
        "scheme": options.scheme,
        "range": options.range,
        "calibrator": options.calibrator,
        "rounding": options.rounding,
        "bias_correction": options.bias_correction,
        "calibration_samples": count,
        "layers_quantized": len(placement.layers),
        "layers_dynamic": list_forms(forms, "dynamic"),
        "layers_weights": [*list_forms(forms, "weights"), *list_forms(forms, "table")],
        "layers_float": list_float_layers(placement.float_layers),
        "activations_quantized": len(quantization),
        "equalize": None if equalized is None else dict(equalized),
        "pair_safe": summarize_pairs(pairs, reordered) if options.range == "pair-safe" else None,
        "moments": None if moments is None else dict(moments),
        "integer_only": float_counts is not None and not float_counts,
        "float_operators": None if float_counts is None else dict(float_counts),
        "seconds": dict(seconds),
    }


def summarize_pairs(factors: Sequence[np.ndarray], reordered: int) -> dict[str, Any]:
    """Summarize how far the pair limit raised the scales of output channels."""
    # The empty array keeps this defined for a model without layers.
    channels = np.concatenate([np.zeros(0), *factors])
    return {
        "reordered": reordered,
        "channels": int(channels.size),
        "limited": int((channels > 1).sum()),
        "factor_mean": round(float(channels.mean()), 4) if channels.size else 1.0,
        "factor_max": round(float(channels.max()), 4) if channels.size else 1.0,
    }


def list_float_layers(float_layers: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Return name, operator and reason of the layers that stay float."""
    layers = []
    for name, kind, reason in float_layers:
        layers.append({"name": name, "operator": kind, "reason": reason})
    return layers


def list_forms(forms: Sequence[Form], kind: str) -> list[dict[str, str]]:
    """Return name, operator and reason of the layers in one form."""
    layers = []
    for form in forms:
        if form.kind == kind:
            layers.append((form.name, form.operator, form.reason))
    return list_float_layers(layers)


def describe_forms(forms: Sequence[Form]) -> list[str]:
    """Describe the layers in other forms, with a sentence for each form and reason."""
    # Layers of one form and reason share a sentence: two LSTM, or one LSTM and one Conv3d.
    groups: dict[tuple[str, str], list[str]] = {}
    for form in forms:
        groups.setdefault((form.kind, form.reason), []).append(form.name)
    sentences = []
    for (kind, reason), names in groups.items():
        sentences.append(f"{_FORMS[kind]}: {join_names(names, 4)} ({reason}).")
    return sentences


def describe_float_layers(float_layers: Sequence[tuple[str, str, str]]) -> list[str]:
    """Describe the layers that stay float, with a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, _, reason in float_layers:
        reasons.setdefault(reason, []).append(name)
    return [f"Left float: {join_names(names, 4)}: {reason}." for reason, names in reasons.items()]


def describe_pairs(figures: Mapping[str, Any]) -> str:
    """Describe the effect of the pair limit in a sentence."""
    layers = figures["reordered"]
    return (
        f"Pair-safe: input channels of {layers} layer{'s' * (layers != 1)} reordered; "
        f"{figures['limited']} of {figures['channels']} output channels scaled down "
        f"(mean {figures['factor_mean']:.2f}x, at most {figures['factor_max']:.2f}x)."
    )


def describe_moments(moments: Mapping[str, Any]) -> list[str]:
    """Describe the layers that are too wide for all of their second moments, in sentences."""
    parts, nearest = moments["parts"], moments["nearest"]
    sentences = []
    if parts:
        widths = sorted(set(parts.values()))
        spans = join_names([str(width) for width in widths], 4)
        sentences.append(
            f"Too wide to be rounded as a whole, so in parts of {spans} columns, within which "
            f"weights compensate each other's errors: {join_names(list(parts), 4)}."
        )
    if nearest:
        sentences.append(
            "Too wide for compensated rounding, so rounded to the nearest, with the mean error "
            f"corrected: {join_names(list(nearest), 4)}."
        )
    return sentences


def describe_equalization(figures: Mapping[str, Any]) -> str:
    """Describe the scaling between layers in a sentence."""
    count, blocked = figures["scaled"], sum(figures["left"].values())
    sentence = (
        f"Equalized ({figures['kind']}): {figures['channels']} channels in {count} "
        f"group{'s' * (count != 1)}, by factors that differ up to {figures['widest']:g}-fold"
    )
    reasons = ", ".join(f"{reason} ({n})" for reason, n in figures["left"].items())
    if blocked:
        sentence += f"; {blocked} not scaled: {reasons}"
    return f"{sentence}."


def describe_static(
    placement: Placement,
    forms: Sequence[Form],
    quantization: Mapping[str, Affine],
    figures: Mapping[str, Any],
) -> tuple[str, ...]:
    """Describe the result in sentences."""
    quantized, float_layers = figures["layers_quantized"], placement.float_layers
    total = quantized + len(forms) + len(float_layers)
    sentences = []
    if quantized:
        sentences.append(
            f"{quantized} of {total} layers quantized to int8, calibrated on "
            f"{figures['calibration_samples']} samples ({figures['calibrator']})."
        )
    sentences += describe_forms(forms)
    sentences += describe_float_layers(float_layers)
    if figures["moments"] is not None:
        sentences += describe_moments(figures["moments"])
    if figures["equalize"] is not None:
        sentences.append(describe_equalization(figures["equalize"]))
    if figures["pair_safe"] is not None and figures["pair_safe"]["channels"]:
        sentences.append(describe_pairs(figures["pair_safe"]))
    # A constant 0 gets scale 1, which is arbitrary: the samples say nothing about its range.
    constant = [name for name, parameters in quantization.items() if parameters in CONSTANT]
    if constant:
        sentences.append(
            f"{len(constant)} activations were 0 on every sample, such as {constant[0]}: on the "
            "device their values are rounded to whole numbers from "
            f"{quantization[constant[0]].low:g} to {quantization[constant[0]].high:g}."
        )
    return tuple(sentences)


def collect_weight_figures(
    choice: Choice,
    options: QuantizeOptions,
    samples: int,
    blocks: int,
    factors: Sequence[np.ndarray],
    operators: Mapping[str, int],
    reordered: int,
    moments: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of the modes without stored ranges as JSON values.

    Args:
        choice: nodes that became integer, and layers that stay float.
        options: of the pass.
        samples: number of calibration samples.
        blocks: number of layers in four bits.
        factors: by which the pair limit raised the scales of every layer.
        operators: number of nodes by operator, after onnxruntime's fusions.
        reordered: number of layers whose input channels were reordered.
        moments: as in `collect_static_figures`.
        seconds: of every phase.
    """
    dynamic = options.mode == "dynamic"
    return {
        "mode": options.mode,
        "scheme": options.scheme,
        "range": options.range if dynamic else None,
        "bits": options.bits,
        "block": options.block,
        "rounding": options.rounding,
        "bias_correction": options.bias_correction,
        "calibration_samples": samples,
        "layers_quantized": choice.count,
        "layers_in_blocks": blocks,
        "tables_quantized": len(choice.tables),
        "layers_float": list_float_layers(choice.float_layers),
        "pair_safe": summarize_pairs(factors, reordered) if options.range == "pair-safe" else None,
        "moments": None if moments is None else dict(moments),
        "integer_only": False,
        "kernels": _count_kernels(operators),
        "seconds": dict(seconds),
    }


def _count_kernels(operators: Mapping[str, int]) -> dict[str, int]:
    """Count the kernels that multiply integers by integers or by float."""
    kernels: dict[str, int] = {}
    for kind, count in operators.items():
        if is_quantized(kind) and operator(kind).products:
            kernels[kind] = count
    return kernels


def describe_weights(choice: Choice, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Describe the result of the modes without stored ranges in sentences."""
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
    sentences += describe_float_layers(choice.float_layers)
    if figures["moments"] is not None:
        sentences += describe_moments(figures["moments"])
    if figures["pair_safe"] is not None and figures["pair_safe"]["channels"]:
        sentences.append(describe_pairs(figures["pair_safe"]))
    return tuple(sentences)
