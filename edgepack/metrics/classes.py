"""Metrics of decisions between classes, as the build host computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from edgepack.errors import MetricError
from edgepack.metrics.protocol import TaskMetric
from edgepack.runtime.parity.accuracy import (
    NONE,
    Accuracy,
    agreement,
    class_scores,
    decisions,
    labelled_output,
    read_labels,
)
from edgepack.runtime.tensor import Tensor

# Samples that are decided at a time.
_BLOCK = 64


def _select(metric: OutputMetric, outputs: Sequence[np.ndarray], labels: np.ndarray) -> int:
    """Return the index of the output that the labels belong to.

    Raises MetricError `metric-shape` if no output decides.
    """
    ragged = any(array.dtype == object for array in (labels, *outputs))
    index = None
    if not ragged:
        index = labelled_output(metric.outputs, [a.shape for a in outputs], labels.shape)
    if index is None:
        if ragged:
            raise _undecided(metric.name, "its samples differ in size")
        raise _undecided(metric.name, "every output holds values")
    return index


def _undecided(name: str, why: str) -> MetricError:
    return MetricError(
        "metric-shape",
        f"no output decides between classes for the metric {name}",
        why=why,
        hint='name the output in the manifest: [[outputs]] name = "...", kind = "scores"',
    )


_Metric = TypeVar("_Metric", bound="OutputMetric")


@dataclass(frozen=True)
class OutputMetric:
    """Metric that depends on the outputs of the model.

    Attributes:
        name: name on the command line.
        outputs: of the model, with their kinds; set by `bind`.
    """

    name: str
    outputs: tuple[Tensor, ...] = field(default=(), kw_only=True)

    def bind(self: _Metric, outputs: Sequence[Tensor]) -> _Metric:
        """Return the metric for a model with these outputs."""
        return replace(self, outputs=tuple(outputs))


@dataclass(frozen=True)
class ClassMetric(OutputMetric):
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
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the mean over the classes that occur among labels or decisions.

        Raises MetricError `metric-shape` if no output decides, and InputError as `read_labels`.
        """
        index = _select(self, outputs, labels)
        counts = _Counts()
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            counts.add(outputs[index][rows], labels[rows], self.outputs[index])
        return counts.average(self.measure)


@dataclass(frozen=True)
class CountMetric(OutputMetric):
    """Share of the labels that are the decision, or among the `top` best scores.

    The loader counts the same itself for the first metric of a build.

    Attributes:
        name: name on the command line.
        top: key of `TOP`.
        outputs: of the model, with their kinds; set by `bind`.
        higher_is_better: True.
    """

    name: str
    top: str
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the share, as `sklearn.metrics.accuracy_score`.

        Raises MetricError `metric-shape` if no output decides, and InputError as `read_labels`.
        """
        index = _select(self, outputs, labels)
        tensor = self.outputs[index]
        counter = Accuracy(self.top, tensor.kind, tensor.axis)
        # The answers are mapped from a file, and only one block of them is in memory.
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            answers = outputs[index][rows]
            counter.update(answers, answers, labels[rows])
        result = counter.result()
        return result["model"] if result else float("nan")


@dataclass(frozen=True)
class AgreementMetric(OutputMetric):
    """Share of the decisions that equal the original's; it needs no labels.

    Attributes:
        name: name on the command line.
        outputs: of the model, with their kinds; set by `bind`.
        higher_is_better: True.
    """

    name: str = "agreement"
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Raise TypeError: the metric has no use for labels."""
        raise TypeError("agreement compares with the original's answers, not with labels")

    def compare(self, outputs: Sequence[np.ndarray], originals: Sequence[np.ndarray]) -> float:
        """Return the lowest share of equal decisions of an output that decides.

        Raises MetricError `metric-shape` if no output decides.
        """
        shares = []
        for tensor, answers, original in zip(self.outputs, outputs, originals, strict=True):
            if answers.dtype == object or answers.shape != original.shape:
                continue
            equal = total = 0
            for start in range(0, len(answers), _BLOCK):
                rows = slice(start, start + _BLOCK)
                counts = agreement(original[rows], answers[rows], tensor.kind, tensor.axis)
                total, equal = total + counts[0], equal + counts[1]
            if total:
                shares.append(equal / total)
        if not shares:
            raise _undecided(self.name, "every output holds values, or its samples differ in size")
        return min(shares)


def judges_decisions(task: TaskMetric) -> bool:
    """Return True for a metric that is at chance if the number of right decisions is."""
    return isinstance(task.metric, (ClassMetric, CountMetric))


@dataclass(frozen=True)
class MatchMetric:
    """Share of the decoded results that equal their label: numbers, texts, or arrays of them.

    Attributes:
        name: name on the command line.
        higher_is_better: True.
    """

    name: str = "accuracy"
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[object], labels: np.ndarray) -> float:
        """Return the share, as `sklearn.metrics.accuracy_score`.

        Raises MetricError `metric-shape` for another number of labels than results.
        """
        if len(outputs) != len(labels):
            raise MetricError(
                "metric-shape",
                f"the labels do not fit the results for the metric {self.name}",
                why=f"{len(labels)} labels for {len(outputs)} results of the postprocess",
                hint="store one label for each sample",
            )
        equal = 0
        # The result [3] or 3 equals the label 3, and "cat" the label "cat".
        for result, label in zip(outputs, labels, strict=True):
            equal += bool(np.array_equal(np.squeeze(np.asarray(result)), np.squeeze(label)))
        return equal / len(labels)


@dataclass(frozen=True)
class AreaMetric(OutputMetric):
    """Area under the ROC curve, averaged over the classes: each against all others.

    Attributes:
        name: name on the command line.
        outputs: of the model, with their kinds; set by `bind`.
        higher_is_better: True.
    """

    name: str = "auroc"
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the area, as `sklearn.metrics.roc_auc_score` with multi_class="ovr".

        Zeros and ones for each column of logits or probabilities are separate decisions, whose
        areas are averaged. Classes that all labels have, or none, have no area and do not count.

        Raises MetricError `metric-shape` if no output decides, and InputError as `read_labels`.
        """
        from sklearn.metrics import roc_auc_score

        index = _select(self, outputs, labels)
        tensor = self.outputs[index]
        areas = []
        for scores, positive in _rank_classes(outputs[index], labels, tensor):
            if 0 < np.count_nonzero(positive) < len(positive):
                areas.append(float(roc_auc_score(positive, scores)))
        return float(np.mean(areas)) if areas else float("nan")


def _rank_classes(
    answers: np.ndarray, labels: np.ndarray, tensor: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each class, scores by which to rank the decisions, and True for its members.

    Scores (8, 3) and labels (8,) yield three pairs of arrays (8,); of two classes, one pair is
    enough, since the other is its mirror image. Logits (8, 20) yield 20 pairs.
    """
    classes = read_labels(labels, answers.shape, tensor.kind, tensor.axis)
    # Each column of logits is a decision of its own: its members are the labels 1.
    if tensor.kind != "scores":
        columns = classes.reshape(len(classes), -1)
        values = answers.reshape(len(answers), -1)
        for column in range(values.shape[1]):
            counted = columns[:, column] != NONE
            yield values[counted, column], columns[counted, column] == 1
        return
    counted = classes != NONE
    scores = class_scores(answers, tensor.axis)[counted].astype(np.float64)
    members = classes[counted]
    if scores.shape[-1] == 1:
        yield scores[:, 0], members == 1
        return
    # The difference of two scores ranks as the probability of a softmax does.
    if scores.shape[-1] == 2:
        yield scores[:, 1] - scores[:, 0], members == 1
        return
    probabilities = _normalize(scores)
    for number in range(scores.shape[-1]):
        yield probabilities[:, number], members == number


def _normalize(scores: np.ndarray) -> np.ndarray:
    """Return probabilities: scores that add up to 1 as they are, others by a softmax."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):
        return scores
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


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


CLASS_METRICS = (
    CountMetric("accuracy", "top1"),
    ClassMetric("f1", f1),
    AreaMetric(),
    ClassMetric("miou", intersection_over_union),
)
"""Metrics of labelled classes; each is bound to the outputs of a model."""

COUNTED = {"top1": CountMetric("top1", "top1"), "top5": CountMetric("top5", "top5")}
"""Accuracies that the loader counts, for builds in which they are not the first metric."""
