"""Metrics of values: errors, correlations and cosine similarity against labels of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import MetricError

# Values that are converted to float64 at a time: 8 MiB of each of two arrays.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ValueMetric:
    """Metric of the first output that has the shape of the labels, axes of size 1 aside.

    Attributes:
        name: name on the command line.
        higher_is_better: False for errors.
        measure: returns the metric of answers and labels of one shape, (samples, values).
    """

    name: str
    higher_is_better: bool
    measure: Callable[[np.ndarray, np.ndarray], float]

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the metric. Raises MetricError `metric-shape` if the labels fit no output."""
        for answers in outputs:
            if _fits(answers, labels):
                return self.measure(_rows(answers), _rows(labels))
        shapes = ", ".join(str(answers.shape) for answers in outputs)
        raise MetricError(
            "metric-shape",
            f"the labels fit no output for the metric {self.name}",
            why=f"labels of shape {labels.shape}; outputs of shapes {shapes}",
            hint="store one label for each value of an output, or write a function of your own: "
            "--metric metrics.py:FUNCTION",
        )


def _fits(answers: np.ndarray, labels: np.ndarray) -> bool:
    # Samples of different sizes are arrays of arrays, which these formulas do not take.
    if answers.dtype == object or labels.dtype == object:
        return False
    sizes = [[size for size in array.shape[1:] if size != 1] for array in (answers, labels)]
    return len(answers) == len(labels) and sizes[0] == sizes[1]


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def _blocks(answers: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both arrays in blocks of rows, as float64: neither fits into memory for certain."""
    step = max(1, _BLOCK // max(1, answers.shape[1]))
    for start in range(0, len(answers), step):
        rows = slice(start, start + step)
        yield answers[rows].astype(np.float64), labels[rows].astype(np.float64)


def mean_absolute_error(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of |answer - label|, as `sklearn.metrics.mean_absolute_error`."""
    total = sum(float(np.abs(a - b).sum()) for a, b in _blocks(answers, labels))
    return total / answers.size


def root_mean_squared_error(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the root of the mean of (answer - label)^2, over all values of all samples.

    As `sklearn.metrics.root_mean_squared_error`, for samples of one value; that averages the roots
    of the columns.
    """
    total = sum(float(np.square(a - b).sum()) for a, b in _blocks(answers, labels))
    return math.sqrt(total / answers.size)


def pearson(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's (1895) correlation of each value over the samples, averaged over values.

    As `scipy.stats.pearsonr`, but 0 for constant answers: they follow the labels in nothing.
    Values with constant labels make it NaN, since nothing can follow those.
    """
    total = 0.0
    # One value of all samples at a time: labels (500, 3) give three correlations.
    for index in range(answers.shape[1]):
        a = answers[:, index].astype(np.float64)
        b = labels[:, index].astype(np.float64)
        total += _correlate(a, b)
    return total / float(answers.shape[1])


def spearman(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's (1904) correlation of ranks: Pearson's of the ranks, ties averaged.

    As `scipy.stats.spearmanr`, with the exception of `pearson`.
    """
    total = 0.0
    for index in range(answers.shape[1]):
        total += _correlate(_ranks(answers[:, index]), _ranks(labels[:, index]))
    return total / float(answers.shape[1])


def _correlate(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    if not np.any(b):
        return math.nan
    if not np.any(a):
        return 0.0
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values, from 1 on.

    Equal values share the mean of their ranks: [5, 2, 5] gives [2.5, 1, 2.5].
    """
    if np.isnan(values).any():
        return np.full(len(values), math.nan)
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[positions]
    return ranks


def cosine(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cosine similarity of a sample's answer and its label; 0 for a zero vector.

    As `sklearn.metrics.pairwise.paired_cosine_distances`, subtracted from 1.
    """
    total = 0.0
    for a, b in _blocks(answers, labels):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        products = np.einsum("ij,ij->i", a, b)
        # NaN stays NaN: only a norm of 0 is replaced.
        total += float((products / np.where(norms == 0, 1.0, norms)).sum())
    return total / len(answers)


VALUE_METRICS = (
    ValueMetric("mae", False, mean_absolute_error),
    ValueMetric("rmse", False, root_mean_squared_error),
    ValueMetric("pearson", True, pearson),
    ValueMetric("spearman", True, spearman),
    ValueMetric("cosine", True, cosine),
)
