"""Parts of an output and their signals, against which quality and fidelity are measured.

An SNR about zero over a whole output is misleading: an offset counts as signal, and box
coordinates in pixels drown class scores between 0 and 1. So the signal of an element is its
variance over the evaluation samples, which removes offsets, anchor grids and priors, and an
output is divided into parts of similar scale. The SNR of a part,

    10 log10(sum of variances / sum of mean squared errors)   in dB,

is the explained variance of regression in decibels: R^2 = 1 - 10^(-SNR / 10), the fraction of
variance unexplained of Draper and Smith, Applied Regression Analysis (1998), section 1.3. At 0 dB
the model is no better than the constant mean of the original's answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor

GAP = 10.0
"""Neighbouring scales, as standard deviations, that differ by more belong to different parts."""

DEAD_SHARE = 0.02
"""Smallest share of slices below such a gap that form a part; fewer are nearly dead channels."""

RESOLVED = 2.0**-20
"""Standard deviations below this share of the root mean square are float32 rounding (2^-24)."""

CONSTANT_SHARE = 0.1
"""Assumed spread of a constant element, as a share of its magnitude."""

MAX_ELEMENTS = 1 << 22
"""Most elements of a sample with individual moments: 4 arrays of 32 MiB."""


class Moments:
    """Mean and variance of every element of an output, over the samples of a stream.

    Axes of a dynamic size count as samples. In an output of more than `MAX_ELEMENTS` elements,
    its longest axes do as well. Sums are relative to the first sample, so that an offset costs
    no digits (Chan, Golub and LeVeque, The American Statistician 37, 1983).
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._pooled: tuple[int, ...] = ()
        self._shift: np.ndarray | None = None
        self._count = self._sum = self._square = np.zeros(())

    def update(self, values: np.ndarray) -> None:
        """Add one batch. Values that are not finite are ignored."""
        values = values.astype(np.float64, copy=False)
        if not values.size:
            return
        finite = np.isfinite(values)
        values = np.where(finite, values, 0.0)
        # The first batch decides the shift; later ones use the same.
        if self._shift is None:
            self._pooled = _pooled_axes(self._tensor, values.shape)
            self._shift = values.mean(axis=self._pooled, keepdims=True)
        centred = np.where(finite, values - self._shift, 0.0)
        self._count = self._count + np.count_nonzero(finite, axis=self._pooled, keepdims=True)
        self._sum = self._sum + centred.sum(axis=self._pooled, keepdims=True)
        with np.errstate(over="ignore"):
            squares = np.square(centred).sum(axis=self._pooled, keepdims=True)
        self._square = self._square + squares

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return variance and mean square of every element; pooled axes have the size 1.

        The variance is that of a sample (divided by the count less one), so that few samples do
        not shrink the signal. A single sample has none, so its elements vary about their mean.
        """
        if self._shift is None:
            return np.zeros(()), np.zeros(())
        count = np.maximum(self._count, 1)
        mean = self._sum / count
        with np.errstate(over="ignore"):
            squares = np.square(self._shift + mean)
        if self._count.max() < 2:
            # For (1, C, H, W) the mean is over all axes but the first, for (1, C) over everything.
            axes = None
            if self._shift.ndim > 2:
                axes = tuple(range(1, self._shift.ndim))
            centre = self._shift.mean(axis=axes, keepdims=True)
            return np.square(self._shift - centre), squares
        centred = np.maximum(self._square - count * np.square(mean), 0.0)
        return centred / np.maximum(count - 1, 1), squares


def _pooled_axes(tensor: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes whose values count as samples.

    For example an output (batch, 1000) of shape (8, 1000) pools axis 0.
    """
    if len(shape) != tensor.rank:
        return tuple(range(len(shape)))
    pooled = {axis for axis, dim in enumerate(tensor.shape) if dim != shape[axis]}
    # The longest axes are pooled first, which keeps most detail: of (1, 3, 4096, 4096) one is.
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        elements = [size for i, size in enumerate(shape) if i not in pooled]
        if np.prod(elements, dtype=np.float64) <= MAX_ELEMENTS:
            break
        pooled.add(axis)
    return tuple(sorted(pooled))


def find_parts(tensor: Tensor, batches: Iterable[np.ndarray]) -> tuple[Part, ...]:
    """Divide an output into parts of similar scale, by the original's answers.

    Args:
        tensor: the output.
        batches: the original's answers on the evaluation samples, batch by batch.

    Returns one part if the output is homogeneous, else one for each group of slices along the
    axis with the widest gap between scales.
    """
    moments = Moments(tensor)
    for batch in batches:
        moments.update(batch)
    return divide(moments)


def divide(moments: Moments) -> tuple[Part, ...]:
    """Divide an output into parts, as `find_parts`, by the moments of all its answers."""
    variance, squares = moments.result()
    # Elements that vary by no more than float32 rounding are constant.
    live = variance > RESOLVED**2 * squares
    axis, groups = _divide(variance, squares, live)
    if axis is None:
        return (Part(None, (), _power(variance, squares, live)),)
    parts = []
    for group in sorted(groups, key=min):
        slices = (np.take(array, group, axis=axis) for array in (variance, squares, live))
        parts.append(Part(axis, _ranges(group), _power(*slices)))
    return tuple(parts)


def _power(variance: np.ndarray, squares: np.ndarray, live: np.ndarray) -> float:
    """Return the mean signal of some elements.

    Elements that never change add nothing to a group with others that do. A group of constant
    elements is given a tenth of its magnitude as its spread: 5.0 everywhere has a power of 0.25.
    """
    if live.any():
        return _bounded(np.where(live, variance, 0.0).mean())
    return _bounded(CONSTANT_SHARE**2 * squares.mean())


def _bounded(value: float) -> float:
    # Squares may overflow float64, and JSON has no infinity.
    return float(min(value, 1e300))


def _powers(variance: np.ndarray, squares: np.ndarray, live: np.ndarray, axis: int) -> np.ndarray:
    """Return `_power` of every slice along an axis."""
    # The mean over all axes but one, for every slice at once.
    others = tuple(i for i in range(variance.ndim) if i != axis)
    moving = np.where(live, variance, 0.0).mean(axis=others)
    still = CONSTANT_SHARE**2 * squares.mean(axis=others)
    return np.asarray(np.where(live.any(axis=others), moving, still))


def _divide(
    variance: np.ndarray, squares: np.ndarray, live: np.ndarray
) -> tuple[int | None, list[tuple[int, ...]]]:
    """Return the axis with the widest gap between scales and its slices by scale, or None."""
    widest_gap, best_axis, parts = GAP, None, []
    for axis in range(variance.ndim):
        if variance.shape[axis] < 2:
            continue
        gap, groups = _by_scale(np.sqrt(_powers(variance, squares, live, axis)))
        if gap > widest_gap:
            widest_gap, best_axis, parts = gap, axis, groups
    return best_axis, parts


def _by_scale(scales: np.ndarray) -> tuple[float, list[tuple[int, ...]]]:
    """Group slices wherever their sorted scales leave a gap; return the widest gap too.

    For example scales of 80, 90, 0.2, 0.1 and 0.3 have the gap 80 / 0.3 and give the groups
    (2, 3, 4) and (0, 1). Slices with a scale of 0 belong to the lowest group.
    """
    order = np.argsort(scales, kind="stable")
    # Of 80 channels, a group of a single one below a gap joins the group above it.
    few = DEAD_SHARE * len(scales)
    widest, groups, current = 1.0, [], [int(order[0])]
    for before, index in pairwise(order):
        # A step up from a scale of 0 is not a gap.
        ratio = scales[index] / scales[before] if scales[before] > 0 else 1.0
        if ratio > GAP and len(current) >= few:
            widest = max(widest, ratio)
            groups.append(tuple(sorted(current)))
            current = []
        current.append(int(index))
    groups.append(tuple(sorted(current)))
    return widest, groups


def _ranges(slices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return sorted slices as half-open ranges: (0, 1, 2, 5) as ((0, 3), (5, 6))."""
    ranges: list[tuple[int, int]] = []
    for index in slices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)
