"""Agreement of two fp32 graphs, up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

SNR_FLOOR_DB = 60.0
"""Reordered fp32 sums stay above 90 dB on the networks measured; a wrong graph below 40 dB."""

LOW_PRECISION_FLOORS_DB = {"float16": 40.0, "bfloat16": 20.0}
"""Floors for a reference computed in one of these types while the graph computes in float32. One
rounding costs at most 2^-11 or 2^-8 of a value: 71 or 53 dB, less as errors add up over layers."""


def floor_db(types: Iterable[str]) -> float:
    """Return the lowest floor among the types that the reference was computed in."""
    # ["float16", "float64"] has the floor of float16: 40 dB.
    lowest = SNR_FLOOR_DB
    for name in types:
        lowest = min(lowest, LOW_PRECISION_FLOORS_DB.get(name, SNR_FLOOR_DB))
    return lowest


def disagreement(
    reference: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    names: Sequence[str],
    floor: float = SNR_FLOOR_DB,
) -> str | None:
    """Return the first difference as one line that names the output, or None if all outputs agree.

    Floating outputs agree from an SNR of `floor` dB, 10 log10(sum r^2 / sum (r - o)^2) over
    finite values; NaN and infinity must occupy the same positions. Integer outputs agree if 99 %
    of their elements are equal, because an index may flip on a tie.

    Args:
        reference: the outputs of the original model.
        outputs: the outputs of the graph, in the same order.
        names: the outputs' names, for the message.
        floor: the lowest accepted SNR in dB.
    """
    if len(reference) != len(outputs):
        return f"{len(outputs)} outputs instead of {len(reference)}"
    for name, expected, actual in zip(names, reference, outputs, strict=True):
        if expected.shape != actual.shape:
            return f"{name} has the shape {list(actual.shape)} instead of {list(expected.shape)}"
        if not np.issubdtype(expected.dtype, np.floating):
            # An empty output agrees; the mean of no elements would be NaN, with a warning.
            equal = float(np.mean(expected == actual)) if expected.size else 1.0
            if equal < 0.99:
                return f"{name}: only {equal:.1%} of the elements are equal"
            continue
        if not np.issubdtype(actual.dtype, np.floating):
            return f"{name} is {actual.dtype} instead of {expected.dtype}"
        finite = np.isfinite(expected)
        if not np.array_equal(
            np.where(finite, 0.0, expected), np.where(np.isfinite(actual), 0.0, actual), True
        ):
            return f"{name} has NaN or infinite values at other positions"
        finite_reference = expected[finite].astype(np.float64)
        noise = float(np.sum((finite_reference - actual[finite].astype(np.float64)) ** 2))
        signal = float(np.sum(finite_reference**2))
        # An SNR means nothing for an output that is zero but for rounding, so noise of up to 1e-6
        # per element is accepted: 1,000 elements may have a squared error of 1e-9 in all.
        if noise > max(signal * 10 ** (-floor / 10), finite_reference.size * 1e-12):
            ratio = 10 * np.log10(signal / noise) if signal else float("-inf")
            return f"{name}: SNR {ratio:.1f} dB against the original model"
    return None
