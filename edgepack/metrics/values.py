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
        for answers in map(np.asarray, outputs):
            if _fits(answers, labels):
                return self.measure(_rows(answers), _rows(labels))
        shapes = ", ".join(str(np.shape(answers)) for answers in outputs)
        raise MetricError(
            "metric-shape",
            f"the labels fit no output for the metric {self.name}",
            why=f"labels of shape {labels.shape}; outputs of shapes {shapes}",
            hint="store one label for each value of an output, or write a function of your own: "
            "--metric metrics.py:FUNCTION",
        )

    def compare(self, outputs: Sequence[np.ndarray], originals: Sequence[np.ndarray]) -> float:
        """Return the lowest value over the outputs, with the original's answers as labels.

        Integers are compared as the others. Raises MetricError `metric-shape` if no output can be
        compared, since its samples differ in size.
        """
        values = []
        for answers, original in zip(outputs, originals, strict=True):
            if _fits(answers, original) and answers.size:
                values.append(self.measure(_rows(answers), _rows(original)))
        if not values:
            raise MetricError(
                "metric-shape",
                f"no output can be compared with the original's by the metric {self.name}",
                why="the samples of each output differ in size",
                hint="decode them into arrays of one shape: postprocess in the manifest",
            )
        return min(values)


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
    Values with constant labels do not count, since nothing can follow those; NaN if all are.
    """
    return _average(answers, labels, lambda values: values)


def spearman(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's (1904) correlation of ranks: Pearson's of the ranks, ties averaged.

    As `scipy.stats.spearmanr`, with the exceptions of `pearson`.
    """
    return _average(answers, labels, _ranks)


def _average(
    answers: np.ndarray, labels: np.ndarray, transform: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Return the mean correlation of transformed columns, over those with labels that vary."""
    # A block of columns at a time: 200 maps of 512 x 512 values are 262,144 columns of 200.
    step = max(1, _BLOCK // max(1, len(answers)))
    total, count = 0.0, 0
    for start in range(0, answers.shape[1], step):
        columns = slice(start, start + step)
        correlations = _correlate(
            transform(answers[:, columns].astype(np.float64)),
            transform(labels[:, columns].astype(np.float64)),
        )
        # NaN answers stay NaN, and only constant labels are left out.
        total += float(correlations.sum())
        count += len(correlations)
    return total / count if count else math.nan


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlations of columns; those with constant labels `b` are left out."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    varies = np.any(b != 0, axis=0)
    a, b = a[:, varies], b[:, varies]
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    products = np.einsum("ij,ij->j", a, b)
    correlations: np.ndarray = products / np.where(norms == 0, 1.0, norms)
    return correlations


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of the values of each column, from 1 on.

    Equal values share the mean of their ranks: a column [5, 2, 5] gives [2.5, 1, 2.5]. A column
    with NaN has no ranks, and is NaN throughout.
    """
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    rows = np.arange(len(values))[:, None]
    starts = np.ones(values.shape, dtype=bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    # Sorted values [2, 5, 5] start groups at the rows 0, 1, 1 and end them at 0, 2, 2.
    first = np.maximum.accumulate(np.where(starts, rows, 0), axis=0)
    ends = np.ones(values.shape, dtype=bool)
    ends[:-1] = starts[1:]
    last = np.minimum.accumulate(np.where(ends, rows, len(values))[::-1], axis=0)[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=0)
    ranks[:, np.isnan(values).any(axis=0)] = math.nan
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
