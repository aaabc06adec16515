"""What the quantization tells the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.chain.quantize.forms import Form
from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.place import Placement
from edgepack.chain.quantize.scheme import Affine, affine, signed
from edgepack.chain.quantize.weights import Quantized

# What a scheme makes of an activation that was always 0.
CONSTANT = (affine(0.0, 0.0), signed(0.0))
# What a form does to a layer.
_FORMS = {
    "dynamic": "Quantized to int8 at run time, where an answer depends a little on its batch",
    "weights": "Int8 weights in the file and float arithmetic",
}


def details(
    placement: Placement,
    forms: Sequence[Form],
    options: QuantizeOptions,
    count: int,
    quantization: Mapping[str, Affine],
    weights: Mapping[int, Quantized],
    reordered: int,
    equalized: Mapping[str, Any] | None,
    float_counts: Mapping[str, int] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The figures, as JSON values.

    Args:
        placement: what became integer and what did not.
        forms: layers beside them, in a form of their own.
        options: what was asked for.
        count: number of calibration samples.
        quantization: of every root tensor.
        weights: of every layer, by the node's index.
        reordered: number of layers whose input channels were put in order.
        equalized: what `equalize` tells; None where it was not asked for.
        float_counts: operators that round in float after onnxruntime's fusion, with their number; None
            where another engine fuses.
        seconds: of every phase.
    """
    pairs = [weights[layer.index].factor for layer in placement.layers]
    pairs += [each.factor for form in forms if form.kind == "dynamic" for each in form.integers]
    return {
        "mode": options.mode,
        "scheme": options.scheme,
        "range": options.range,
        "calibrator": options.calibrator,
        "rounding": options.rounding,
        "bias_correction": options.bias_correction,
        "calibration_samples": count,
        "layers_quantized": len(placement.layers),
        "layers_dynamic": form_names(forms, "dynamic"),
        "layers_weights": form_names(forms, "weights"),
        "layers_float": float_layer_figures(placement.float_layers),
        "activations_quantized": len(quantization),
        "equalize": None if equalized is None else dict(equalized),
        "pair_safe": pair_figures(pairs, reordered) if options.range == "pair-safe" else None,
        "integer_only": float_counts is not None and not float_counts,
        "float_operators": None if float_counts is None else dict(float_counts),
        "seconds": dict(seconds),
    }


def pair_figures(factors: Sequence[np.ndarray], reordered: int) -> dict[str, Any]:
    """What the pair limit asked of the output channels of every layer."""
    channels = np.concatenate([np.zeros(0), *factors])
    return {
        "reordered": reordered,
        "channels": int(channels.size),
        "limited": int((channels > 1).sum()),
        "factor_mean": round(float(channels.mean()), 4) if channels.size else 1.0,
        "factor_max": round(float(channels.max()), 4) if channels.size else 1.0,
    }


def float_layer_figures(float_layers: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Layers that stay float: name, operator, reason."""
    return [
        {"name": name, "operator": kind, "reason": reason} for name, kind, reason in float_layers
    ]


def form_names(forms: Sequence[Form], kind: str) -> list[dict[str, str]]:
    """Return name, operator and reason of the layers in one form."""
    return [
        {"name": form.name, "operator": form.operator, "reason": form.reason}
        for form in forms
        if form.kind == kind
    ]


def form_notes(forms: Sequence[Form]) -> list[str]:
    """Describe the layers in a form of their own, a sentence for each form and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for form in forms:
        groups.setdefault((form.kind, form.reason), []).append(form.name)
    return [
        f"{_FORMS[kind]}: {_join_names(names)} ({reason})."
        for (kind, reason), names in groups.items()
    ]


def float_layer_notes(float_layers: Sequence[tuple[str, str, str]]) -> list[str]:
    """The same in sentences, one for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, _, reason in float_layers:
        reasons.setdefault(reason, []).append(name)
    return [f"Left float: {_join_names(names)}: {reason}." for reason, names in reasons.items()]


def _join_names(names: Sequence[str]) -> str:
    """Join the first four names, and count the others."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def pair_note(figures: Mapping[str, Any]) -> str:
    """What the pair limit asked, in a sentence."""
    layers = figures["reordered"]
    return (
        f"Pair-safe: the input channels of {layers} layer{'s' * (layers != 1)} were put in "
        f"order; {figures['limited']} of {figures['channels']} output channels still "
        f"had to give way, by {figures['factor_mean']:.2f} on average and "
        f"{figures['factor_max']:.2f} at most."
    )


def equalize_note(figures: Mapping[str, Any]) -> str:
    """What was scaled between layers, and what could not be."""
    count, blocked = figures["scaled"], sum(figures["left"].values())
    sentence = (
        f"Equalized ({figures['kind']}): {figures['channels']} channels in {count} "
        f"place{'s' * (count != 1)}, by factors that differ {figures['widest']:g}-fold at most"
    )
    reasons = ", ".join(f"{reason} ({n})" for reason, n in figures["left"].items())
    return f"{sentence}; {blocked} left: {reasons}." if blocked else f"{sentence}."


def notes(
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
    sentences += form_notes(forms)
    sentences += float_layer_notes(float_layers)
    if figures["equalize"] is not None:
        sentences.append(equalize_note(figures["equalize"]))
    if figures["pair_safe"] is not None and figures["pair_safe"]["channels"]:
        sentences.append(pair_note(figures["pair_safe"]))
    constant = [name for name, affine in quantization.items() if affine in CONSTANT]
    if constant:
        sentences.append(
            f"{len(constant)} activations were 0 on every sample ({constant[0]} is one): "
            "whatever else they hold on the device becomes a whole number from "
            f"{quantization[constant[0]].low:g} to {quantization[constant[0]].high:g}."
        )
    return tuple(sentences)
