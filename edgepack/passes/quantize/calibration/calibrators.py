"""Choose the range of an activation's u8 values from its histogram."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 2048
# Candidates of the mse search for either end of the range.
CANDIDATES = 256
# Candidates of the entropy search for the share of values outside, both tails together.
TAILS = (0.0, *np.logspace(-6, -1.5, 60).tolist())


@dataclass
class Histogram:
    """Counts in bins of equal width over a fixed range; exact zeros are counted separately.

    Attributes:
        low, high: the range; values outside are counted in the first and last bin.
        counts: (bins,) int64.
        zeros: number of values that are exactly 0 (0 is represented without error).
        borders: (bins + 1,) of the bins; None if they are equally wide.
    """

    low: float
    high: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    zeros: int = 0
    borders: np.ndarray | None = None

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, (bins + 1,)."""
        if self.borders is not None:
            return self.borders
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    def add(self, values: np.ndarray) -> None:
        """Count the values of one batch."""
        flat = np.asarray(values, dtype=np.float32).ravel()
        if self.high <= self.low:
            self.zeros += flat.size
            return
        # A range of [-1, 3] in 4 bins: -1 falls in bin 0, 0 in bin 1, and 3, the end, in bin 3.
        bins = len(self.counts)
        bin_indices = (flat - np.float32(self.low)) * np.float32(bins / (self.high - self.low))
        bin_indices = np.clip(bin_indices, 0, bins - 1).astype(np.int32)
        zero = int(flat.size - np.count_nonzero(flat))
        self.counts += np.bincount(bin_indices, minlength=bins)
        if zero:
            # The zeros were counted with their bin; move them to their own count.
            home = (np.float32(0) - np.float32(self.low)) * np.float32(
                bins / (self.high - self.low)
            )
            self.counts[int(np.clip(home, 0, bins - 1))] -= zero
            self.zeros += zero


class GrowingHistogram:
    """Counts of values whose range is not known beforehand.

    Bins start at whole multiples of a power of two. Where a value lies beyond them, bins are added;
    where there would be more than twice `BINS`, neighbours are merged, which loses no count. So one
    run over the samples suffices, and the result does not depend on the order of the values.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._exponent = -1000
        # Number of the first bin, from 0 at the value 0.
        self._first = 0
        self._counts = np.zeros(0, dtype=np.int64)
        self._zeros = 0

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Count values, which lie between `low` and `high`; zero is always in the range."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = int(values.size - np.count_nonzero(values))
        self._zeros += zeros
        bottom, top = min(self.low, 0.0), max(self.high, 0.0)
        if top == bottom:
            return
        self._reach(bottom, top)
        # A product with a power of two is exact, so that a value always falls in the same bin.
        scaled = values * np.float32(2.0**-self._exponent)
        np.floor(scaled, out=scaled)
        scaled -= np.float32(self._first)
        # At most the last bin: the largest value may lie on its upper border.
        bins = np.minimum(scaled.astype(np.int32), len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._counts[-self._first] -= zeros

    def _reach(self, bottom: float, top: float) -> None:
        """Let the bins cover a range."""
        # A range of 6 and 2,048 bins: a width of 2^-9 gives 3,072 of them.
        _, exponent = np.frexp((top - bottom) / BINS)
        # Smaller widths than the smallest normal float32 would scale values to infinity.
        exponent = max(int(exponent) - 1, -120)
        counts, first = self._counts, self._first
        if not len(counts):
            self._exponent = exponent
        while self._exponent < exponent:
            padded = np.pad(counts, (first % 2, (first + len(counts)) % 2))
            counts, first = padded.reshape(-1, 2).sum(axis=1), first // 2
            self._exponent += 1
        width = 2.0**self._exponent
        # One bin beyond zero at either end lets zero have a bin.
        start = min(int(np.floor(bottom / width)), first if len(counts) else 0)
        stop = max(int(np.floor(top / width)) + 1, first + len(counts))
        before = first - start if len(counts) else 0
        self._counts = np.zeros(stop - start, dtype=np.int64)
        self._counts[before : before + len(counts)] = counts
        self._first = start

    def histogram(self) -> Histogram:
        """Return the counts over the exact range."""
        if not len(self._counts):
            return Histogram(self.low, self.high, zeros=self._zeros)
        borders = (self._first + np.arange(len(self._counts) + 1)) * 2.0**self._exponent
        # Bins outside the range are empty, but for one that holds the largest value alone.
        inside = (borders[:-1] < self.high) & (borders[1:] > self.low)
        if not inside.any():
            return Histogram(self.low, self.high, zeros=self._zeros + int(self._counts.sum()))
        first, last = np.flatnonzero(inside)[[0, -1]]
        counts = self._counts[first : last + 1].copy()
        counts[-1] += self._counts[last + 1 :].sum()
        borders = np.clip(borders[first : last + 2], self.low, self.high)
        return Histogram(self.low, self.high, counts, self._zeros, borders)


def choose_minmax(histogram: Histogram) -> tuple[float, float]:
    """Return the range of all values."""
    return histogram.low, histogram.high


def choose_percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """Return the range that holds `percent` of all values, with equal tails outside."""
    return _cut_tails(histogram, 1.0 - percent / 100.0)


def choose_entropy(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Return the range whose levels lose the least information about the distribution.

    It minimizes the Kullback-Leibler divergence between the clipped distribution and the quantized
    one, as in Migacz, "8-bit inference with TensorRT" (2017). The candidates cut equal shares off
    both tails, since u8 ranges need not be symmetric.
    """
    # The full range is the first candidate, so ties favour it.
    best, least = (histogram.low, histogram.high), np.inf
    for tail in TAILS:
        low, high = _cut_tails(histogram, tail)
        divergence = _divergence(histogram, low, high, levels)
        if divergence < least:
            best, least = (low, high), divergence
    return best


def choose_mse(histogram: Histogram, levels: int) -> tuple[float, float]:
    """Return the range with the least mean squared error, over a grid of both ends.

    Inside the range the error is uniform, step^2 / 12; outside, it is the distance to the nearer
    end. Exact zeros have no error (see Banner et al., "Post training 4-bit quantization", 2019, for
    the split into rounding and clipping).
    """
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    if histogram.high <= histogram.low or not counts.sum():
        return histogram.low, histogram.high
    # Every low end meets every high end: with lows (L,) and highs (H,) the error is (L, H).
    centres = (edges[:-1] + edges[1:]) / 2
    lows = np.linspace(min(histogram.low, 0.0), 0.0, CANDIDATES, endpoint=False)
    highs = np.linspace(max(histogram.high, 0.0), 0.0, CANDIDATES, endpoint=False)
    lows, highs = np.unique(lows), np.unique(highs)
    below = _clipping(counts, centres, lows)
    above = _clipping(counts, -centres, -highs)
    step = (highs[None, :] - lows[:, None]) / levels
    inside = counts.sum() - below[0][:, None] - above[0][None, :]
    error = np.maximum(inside, 0) * step**2 / 12 + below[1][:, None] + above[1][None, :]
    error[step <= 0] = np.inf
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[row]), float(highs[column])


def fold_magnitudes(counts: Histogram) -> Histogram:
    """Return the histogram of the magnitudes, assuming even spread within a bin."""
    largest = max(abs(counts.low), abs(counts.high))
    if not largest:
        return Histogram(0.0, 0.0, counts.counts, counts.zeros)
    edges = np.linspace(0, largest, len(counts.counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts.counts, dtype=np.float64)])
    # Values in [a, b] of magnitude: those in [a, b] and those in [-b, -a].
    inside = np.interp(edges, counts.edges, below) - np.interp(-edges, counts.edges, below)
    return Histogram(0.0, largest, np.diff(inside), counts.zeros)


def _clipping(
    counts: np.ndarray, centres: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the count of values below each limit, and the sum of their squared distances.

    The sum is expanded into moments: sum (x - l)^2 = sum x^2 - 2 l sum x + l^2 n.
    """
    order = np.argsort(centres)
    sorted_centres = centres[order]
    position = np.searchsorted(sorted_centres, limits)
    # Centres 1, 2, 4 with a count of 1 each and a limit of 3: 2 values, sum 3, sum of squares 5.
    moments = []
    for power in (0, 1, 2):
        sums = np.cumsum(counts[order] * sorted_centres**power)
        moments.append(np.concatenate([[0], sums])[position])
    zeroth, first, second = moments
    return zeroth, np.maximum(second - 2 * limits * first + limits**2 * zeroth, 0)


def _cut_tails(histogram: Histogram, share: float) -> tuple[float, float]:
    """Cut equal shares off both tails, `share` in total, and return the ends of the rest."""
    counts = histogram.counts.astype(np.float64)
    edges = histogram.edges
    if histogram.high <= histogram.low or share <= 0:
        return histogram.low, histogram.high
    home = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 1))
    counts[home] += histogram.zeros
    cumulated = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    # Interpolate within a bin. The tiny slope makes the sums strictly increasing across empty bins.
    grown = cumulated + np.arange(len(cumulated)) * 1e-15
    low, high = np.interp([share / 2, 1 - share / 2], grown, edges)
    return float(low), float(high)


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Return KL(clipped distribution || its quantization), in nats."""
    edges = histogram.edges
    low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        return np.inf
    centres = (edges[:-1] + edges[1:]) / 2
    counts = histogram.counts.astype(np.float64)
    within = (centres >= low) & (centres <= high)
    clipped = np.where(within, counts, 0.0)
    if not clipped.any():
        return np.inf
    inside = np.flatnonzero(within)
    # Bins of one level share its count evenly: counts 6, 0, 2 of one level become 4, 0, 4.
    quantized = np.zeros_like(clipped)
    level = np.rint((centres - low) / (high - low) * levels).astype(np.int64)
    sums = np.bincount(level[inside], clipped[inside], levels + 1)
    filled = np.bincount(level[inside], clipped[inside] > 0, levels + 1)
    live = inside[clipped[inside] > 0]
    quantized[live] = sums[level[live]] / filled[level[live]]
    # In the reference distribution, clipped values lie at the ends.
    clipped[inside[0]] += counts[: inside[0]].sum()
    clipped[inside[-1]] += counts[inside[-1] + 1 :].sum()
    p = clipped / clipped.sum()
    q = quantized / quantized.sum()
    present = p > 0
    q = np.maximum(q, 1e-12)
    return float(np.sum(p[present] * np.log(p[present] / q[present])))
