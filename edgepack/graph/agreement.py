"""Whether two fp32 graphs gave the same answer, up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

SNR_FLOOR_DB = 60.0
"""Reordered fp32 sums stay above 90 dB on the networks measured; a wrong graph below 40 dB."""

LOW_PRECISION_FLOORS_DB = {"float16": 40.0, "bfloat16": 20.0}
"""Floors where the reference was computed in one of these types and the graph in float32. Each
rounding costs 2^-11 and 2^-8 of a value at most: 71 and 53 dB, less what layers add up."""


def floor_db(types: Iterable[str]) -> float:
    """Return the floor for a reference that was computed in some of these types."""
    return min([SNR_FLOOR_DB, *(LOW_PRECISION_FLOORS_DB.get(t, SNR_FLOOR_DB) for t in types)])


def disagreement(
    reference: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    names: Sequence[str],
    floor: float = SNR_FLOOR_DB,
) -> str | None:
    """What differs, in one line naming the output, or None where all outputs agree.

    Floating outputs agree from `floor` dB on, 10 log10(sum r^2 / sum (r - o)^2) over
    finite values; NaN and infinity must stand at the same places. Integer outputs agree where
    99 % of their elements are equal, because an index may flip on a tie.
    """
    if len(reference) != len(outputs):
        return f"{len(outputs)} outputs instead of {len(reference)}"
    for name, expected, found in zip(names, reference, outputs, strict=True):
        if expected.shape != found.shape:
            return f"{name} has the shape {list(found.shape)} instead of {list(expected.shape)}"
        if not np.issubdtype(expected.dtype, np.floating):
            equal = float(np.mean(expected == found)) if expected.size else 1.0
            if equal < 0.99:
                return f"{name}: only {equal:.1%} of its elements are equal"
            continue
        if not np.issubdtype(found.dtype, np.floating):
            return f"{name} is {found.dtype} instead of {expected.dtype}"
        finite = np.isfinite(expected)
        if not np.array_equal(
            np.where(finite, 0.0, expected), np.where(np.isfinite(found), 0.0, found), True
        ):
            return f"{name} has NaN or infinite values at other places"
        wanted = expected[finite].astype(np.float64)
        noise = float(np.sum((wanted - found[finite].astype(np.float64)) ** 2))
        signal = float(np.sum(wanted**2))
        # An output that is zero but for rounding has no ratio: 1e-6 per element is rounding.
        if noise > max(signal * 10 ** (-floor / 10), wanted.size * 1e-12):
            ratio = 10 * np.log10(signal / noise) if signal else float("-inf")
            return f"{name}: SNR {ratio:.1f} dB against the original model"
    return None
