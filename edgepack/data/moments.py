"""Minimum, maximum, mean and spread of values that come in parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """An input's values over all samples of a set; the standard deviation is the population's."""

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
        whole: all of them are whole numbers.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    whole: bool = True

    def add(self, values: np.ndarray) -> None:
        """Merge by the pairwise formula of Chan, Golub and LeVeque (1979)."""
        if not values.size:  # an empty KV cache, for one
            return
        mean = float(values.mean(dtype=np.float64))
        deviations = float(values.var(dtype=np.float64)) * values.size
        delta, total = mean - self.mean, self.count + values.size
        self.deviations += deviations + delta * delta * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        self.whole = self.whole and bool((np.rint(values) == values).all())

    def statistics(self) -> Statistics:
        """Return the statistics of what has been added; zeros where that is nothing."""
        if not self.count:
            return Statistics(0.0, 0.0, 0.0, 0.0)
        std = (self.deviations / self.count) ** 0.5
        return Statistics(self.minimum, self.maximum, self.mean, std)
