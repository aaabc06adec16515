"""Metrics of decisions between classes, beyond the accuracies that the loader counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.errors import MetricError
from edgepack.runtime.parity.accuracy import NONE, decisions, labelled_output, read_labels
from edgepack.runtime.tensor import Tensor

# Samples that are decided at a time.
_BLOCK = 64


@dataclass(frozen=True)
class ClassMetric:
    """Metric of the labelled output's decisions, averaged over the classes.

    Attributes:
        name: name on the command line.
        measure: returns the score of one class from its right decisions, all its decisions and
            all its labels.
        outputs: of the model, with their kinds; set by `bind`.
        higher_is_better: True.
    """

    name: str
    measure: Callable[[int, int, int], float]
    outputs: tuple[Tensor, ...] = ()
    higher_is_better: bool = True

    def bind(self, outputs: Sequence[Tensor]) -> ClassMetric:
        """Return the metric for a model with these outputs."""
        return replace(self, outputs=tuple(outputs))

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the mean over the classes that occur among labels or decisions.

        Raises MetricError `metric-shape` if no output decides, and InputError as `read_labels`.
        """
        ragged = any(array.dtype == object for array in (labels, *outputs))
        index = None
        if not ragged:
            index = labelled_output(self.outputs, [a.shape for a in outputs], labels.shape)
        if index is None:
            raise MetricError(
                "metric-shape",
                f"no output decides between classes for the metric {self.name}",
                why="its samples differ in size" if ragged else "every output holds values",
                hint='name the output in the manifest: [[outputs]] name = "...", kind = "scores"',
            )
        counts = _Counts()
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            counts.add(outputs[index][rows], labels[rows], self.outputs[index])
        return counts.average(self.measure)


class _Counts:
    """Right decisions, decisions and labels by class."""

    def __init__(self) -> None:
        self.right: Counter[int] = Counter()
        self.decided: Counter[int] = Counter()
        self.labelled: Counter[int] = Counter()

    def add(self, answers: np.ndarray, labels: np.ndarray, tensor: Tensor) -> None:
        expected = read_labels(labels, answers.shape, tensor.kind, tensor.axis)
        decided = decisions(answers, tensor.kind, tensor.axis)
        # Only outputs that decide are chosen.
        if decided is None:
            return
        counted = expected != NONE
        expected, decided = expected[counted], decided.reshape(expected.shape)[counted]
        _count(self.right, expected[expected == decided])
        # NaN decides nothing, which counts as a wrong decision of no class.
        _count(self.decided, decided[decided != NONE])
        _count(self.labelled, expected)

    def average(self, measure: Callable[[int, int, int], float]) -> float:
        classes = self.decided.keys() | self.labelled.keys()
        scores = [measure(self.right[c], self.decided[c], self.labelled[c]) for c in classes]
        return float(np.mean(scores)) if scores else float("nan")


def _count(counter: Counter[int], classes: np.ndarray) -> None:
    values, numbers = np.unique(classes, return_counts=True)
    counter.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))


def f1(right: int, decided: int, labelled: int) -> float:
    """Return the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    The metric is `sklearn.metrics.f1_score` with average="macro". Van Rijsbergen (1979).
    """
    return 2 * right / (decided + labelled)


def intersection_over_union(right: int, decided: int, labelled: int) -> float:
    """Return TP / (TP + FP + FN) of one class.

    Its mean over the classes is that of Long et al. (2015), and `sklearn.metrics.jaccard_score`
    with average="macro".
    """
    return right / (decided + labelled - right)


CLASS_METRICS = (ClassMetric("f1", f1), ClassMetric("miou", intersection_over_union))
