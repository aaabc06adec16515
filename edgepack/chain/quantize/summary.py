"""What the quantization tells the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.place import Placement
from edgepack.chain.quantize.scheme import Affine, affine, signed
from edgepack.chain.quantize.weights import Quantized

# What a scheme makes of an activation that was always 0.
CONSTANT = (affine(0.0, 0.0), signed(0.0))


def details(
    placement: Placement,
    options: QuantizeOptions,
    count: int,
    quantization: Mapping[str, Affine],
    weights: Mapping[int, Quantized],
    reordered: int,
    rest: Mapping[str, int] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The figures, as JSON values.

    Args:
        placement: what became integer and what did not.
        options: what was asked for.
        count: number of calibration samples.
        quantization: of every root tensor.
        weights: of every layer, by the node's index.
        reordered: number of layers whose input channels were put in order.
        rest: operators that round in float after onnxruntime's fusion, with their number; None
            where another engine fuses.
        seconds: of every phase.
    """
    factors = np.concatenate([weights[layer.index].factor for layer in placement.layers])
    pair_safe = {
        "reordered": reordered,
        "channels": int(factors.size),
        "limited": int((factors > 1).sum()),
        "factor_mean": round(float(factors.mean()), 4),
        "factor_max": round(float(factors.max()), 4),
    }
    return {
        "scheme": options.scheme,
        "range": options.range,
        "calibrator": options.calibrator,
        "rounding": options.rounding,
        "bias_correction": options.bias_correction,
        "calibration_samples": count,
        "layers_quantized": len(placement.layers),
        "layers_float": [
            {"name": name, "operator": kind, "reason": reason}
            for name, kind, reason in placement.left
        ],
        "activations_quantized": len(quantization),
        "pair_safe": pair_safe if options.range == "pair-safe" else None,
        "integer_only": rest is not None and not rest,
        "float_operators": None if rest is None else dict(rest),
        "seconds": dict(seconds),
    }


def notes(
    placement: Placement, quantization: Mapping[str, Affine], figures: Mapping[str, Any]
) -> tuple[str, ...]:
    """The same in sentences."""
    quantized, left = figures["layers_quantized"], placement.left
    said = [
        f"{quantized} of {quantized + len(left)} layers quantized to int8, calibrated on "
        f"{figures['calibration_samples']} samples ({figures['calibrator']})."
    ]
    reasons: dict[str, list[str]] = {}
    for name, _, reason in left:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        said.append(f"Left float: {shown}: {reason}.")
    pair_safe = figures["pair_safe"]
    if pair_safe is not None:
        layers = pair_safe["reordered"]
        said.append(
            f"Pair-safe: the input channels of {layers} layer{'s' * (layers != 1)} were put in "
            f"order; {pair_safe['limited']} of {pair_safe['channels']} output channels still "
            f"had to give way, by {pair_safe['factor_mean']:.2f} on average and "
            f"{pair_safe['factor_max']:.2f} at most."
        )
    constant = [name for name, found in quantization.items() if found in CONSTANT]
    if constant:
        said.append(
            f"{len(constant)} activations were 0 on every sample ({constant[0]} is one): "
            "whatever else they hold on the device becomes a whole number from "
            f"{quantization[constant[0]].low:g} to {quantization[constant[0]].high:g}."
        )
    return tuple(said)
