"""Minimum, maximum, mean and standard deviation of values that arrive in parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Statistics of an input over all samples of a set; `std` is the population's."""

    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass
class Moments:
    """Running minimum, maximum, mean and squared deviations of one input.

    Attributes:
        count: number of values.
        mean: their mean.
        deviations: sum of their squared deviations from the mean.
        minimum: the smallest.
        maximum: the largest.
        integral: all values are whole numbers.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    integral: bool = True

    def add(self, values: np.ndarray) -> None:
        """Merge by the pairwise formula of Chan, Golub and LeVeque (1979)."""
        # A decoder's first step has an empty KV cache.
        if not values.size:
            return
        # Sums in float64, since a float32 mean of 1e8 values keeps about two digits.
        mean = float(values.mean(dtype=np.float64))
        deviations = float(values.var(dtype=np.float64)) * values.size
        delta, total = mean - self.mean, self.count + values.size
        self.deviations += deviations + delta * delta * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        self.integral = self.integral and bool((np.rint(values) == values).all())

    def statistics(self) -> Statistics:
        """Return the statistics of all values added so far; zeros if there are none."""
        if not self.count:
            return Statistics(0.0, 0.0, 0.0, 0.0)
        std = (self.deviations / self.count) ** 0.5
        return Statistics(self.minimum, self.maximum, self.mean, std)
