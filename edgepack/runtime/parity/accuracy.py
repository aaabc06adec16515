"""Measure decisions: the class that an output chooses, and its agreement with the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..documents import MetricResult

TOP = {"top1": 1, "top5": 5}
# Labels for "no class" at a position of a sample with many positions: -100 as in torch's losses,
# 255 as in segmentation data sets of fewer classes.
UNLABELLED = (-100, -1, 255)
# Marks "no class" among decisions and labels.
NONE = -1
# Kinds of outputs that decide, in the order in which labels are assigned to them.
DECIDING = ("scores", "logit", "probability", "classes")


def class_scores(array: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return class scores with their classes along the last axis."""
    return np.moveaxis(array, axis, -1)


def decisions(array: np.ndarray, kind: str, axis: int = -1) -> Optional[np.ndarray]:
    """Return the class that an output chooses for each decision, int64; NONE for NaN.

    "scores" choose the largest along the class axis, which the result lacks; "logit" chooses class
    1 above 0, "probability" class 1 above 0.5, "classes" holds the choice itself. Scores of a
    single class count as a logit: the largest of one is not a choice. None for "values", and for
    scores without a class axis.

    Scores [[0.1, 0.7, 0.2], [nan, 1, 0]] decide [1, NONE]; logits [-2.0, 3.0] decide [0, 1].
    """
    if kind == "scores":
        if array.ndim == 0 or not array.size:
            return None
        scores = class_scores(array, axis)
        if scores.shape[-1] > 1:
            best = np.argmax(scores, axis=-1)
            score = np.take_along_axis(scores, best[..., None], axis=-1)[..., 0]
            return np.where(np.isnan(score), NONE, best)
        return decisions(scores[..., 0], "logit")
    if kind in ("logit", "probability"):
        threshold = 0.0
        if kind == "probability":
            threshold = 0.5
        return np.where(np.isnan(array), NONE, (array > threshold).astype(np.int64))
    if kind == "classes":
        return array.astype(np.int64)
    return None


def agreement(
    original: np.ndarray, measured: np.ndarray, kind: str, axis: int = -1
) -> Tuple[int, int, int]:
    """Count decisions, equal decisions, and those among the five best of the measured answer.

    Outputs other than scores of several classes have a single best, so the counts are equal.
    """
    expected, actual = decisions(original, kind, axis), decisions(measured, kind, axis)
    if expected is None or actual is None:
        return 0, 0, 0
    same = int(np.count_nonzero((expected == actual) & (actual != NONE)))
    if kind != "scores" or class_scores(original, axis).shape[-1] == 1:
        return expected.size, same, same
    scores = class_scores(measured, axis)
    among = within_top(scores, np.maximum(expected, 0), 5) & (expected != NONE)
    return expected.size, same, int(np.count_nonzero(among))


def within_top(scores: np.ndarray, classes: np.ndarray, k: int) -> np.ndarray:
    """Return True for each chosen class that is among the `k` best along the last axis.

    Ties go to the lower class, as in numpy.argmax; otherwise all-equal scores would make every
    class the best. Of scores [3, 5, 5, 1] class 1 is the best, and class 2 is only in the top 2.
    """
    value = np.take_along_axis(scores, classes[..., None], axis=-1)
    lower = np.arange(scores.shape[-1]) < classes[..., None]
    # `ahead` counts the classes that rank before the chosen one.
    ahead = np.count_nonzero((scores > value) | ((scores == value) & lower), axis=-1)
    among: np.ndarray = (ahead < k) & ~np.isnan(value[..., 0])
    return among


def _squeeze(shape: Sequence[int]) -> Tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _decided_shape(shape: Sequence[int], kind: str, axis: int) -> Tuple[int, ...]:
    """Return the shape of an output's decisions.

    Scores of shape (8, 10, 64, 64) with the classes along axis 1 decide (8, 64, 64).
    """
    if kind != "scores" or not shape:
        return tuple(shape)
    # `axis` may be -1, the last one.
    removed = axis % len(shape)
    return (*shape[:removed], *shape[removed + 1 :])


def labels_fit(
    shape: Sequence[int], labels: Sequence[int], kind: str = "scores", axis: int = -1
) -> bool:
    """Return True if the shape of labels gives one per decision of an output, or one-hot rows.

    Axes of size 1 are ignored. Labels of scores with the classes last may be flattened.
    """
    decided = _decided_shape(shape, kind, axis)
    if _squeeze(labels) == _squeeze(decided):
        return True
    if kind != "scores":
        return False
    # Scores (8, 100, 10) decide (8, 100): labels (8, 100), (800,) or one-hot (8, 100, 10) fit.
    flat = int(np.prod(labels)) == int(np.prod(decided))
    last = axis in (-1, len(shape) - 1) and len(shape) < 4
    return tuple(labels) == tuple(shape) or (flat and last)


def labelled_output(
    outputs: Sequence[Tensor], shapes: Sequence[Sequence[int]], labels: Sequence[int]
) -> Optional[int]:
    """Return the index of the first output that labels of a shape fit.

    Class scores come before logits and probabilities, and those before integer classes. If the
    labels fit none, return the first output that decides; None if no output decides.
    """
    deciding = []
    for kind in DECIDING:
        deciding += [i for i, tensor in enumerate(outputs) if tensor.kind == kind]
    # Outputs of class scores (32, 10) and masks (32, 2, 64, 64): labels of shape (32,) belong to
    # the first, labels (32, 64, 64) to the second.
    for i in deciding:
        if labels_fit(shapes[i], labels, outputs[i].kind, outputs[i].axis):
            return i
    return next(iter(deciding), None)


def is_one_hot(labels: np.ndarray, axis: int) -> bool:
    """Return True if labels hold a single 1 along an axis, and 0 elsewhere."""
    binary = bool(((labels == 0) | (labels == 1)).all())
    return binary and bool((np.sum(labels, axis=axis) == 1).all())


def read_labels(
    labels: np.ndarray, shape: Tuple[int, ...], kind: str = "scores", axis: int = -1
) -> np.ndarray:
    """Return labels as int64 classes in the shape of an output's decisions.

    Args:
        labels: a class for each decision, or one-hot in the shape of the scores. In samples with
            several decisions, UNLABELLED marks those without a class; they become NONE.
        shape: of the output.
        kind: of the output; one that decides.
        axis: of the classes, for scores.

    Raises InputError `labels-shape` or `labels-range`.
    """
    decided = _decided_shape(shape, kind, axis)
    count: Optional[int] = None
    if kind == "scores":
        count = max(shape[axis], 2)
    elif kind != "classes":
        count = 2
    if not labels_fit(shape, labels.shape, kind, axis):
        raise _misfit(labels, shape, "give one label for each decision, or one-hot labels")
    if kind == "scores" and labels.shape == tuple(shape) and shape[axis] > 1:
        if not is_one_hot(labels, axis):
            raise _misfit(labels, shape, "make labels of the shape of the scores one-hot")
        labels = np.argmax(labels, axis=axis)
    # With 3 classes, labels [[0, 2], [255, -1]] become [[0, 2], [NONE, NONE]], and a 3 is refused.
    with np.errstate(invalid="ignore"):
        classes = labels.astype(np.int64)
    unlabelled = np.zeros(labels.shape, dtype=bool)
    if int(np.prod(decided[1:])) > 1:
        marks = [mark for mark in UNLABELLED if mark < 0 or (count is not None and mark >= count)]
        unlabelled = np.isin(classes, marks)
    # A label such as 1.5 or NaN changes when it is converted to an integer.
    wrong = (classes != labels) | ((classes < 0) & ~unlabelled)
    if count is not None:
        wrong |= (classes >= count) & ~unlabelled
    if wrong.any():
        raise _out_of_range(labels[wrong].flat[0], count)
    return np.where(unlabelled, NONE, classes).reshape(decided)


def _out_of_range(label: object, count: Optional[int]) -> InputError:
    classes = "classes are whole numbers, counted from 0"
    if count is not None:
        classes = f"there are {count} classes, counted from 0"
    return InputError(
        "labels-range",
        "a label is not one of the model's classes",
        why=f"label {label}; {classes}",
        hint="labels are class indices in the order of the model's scores",
    )


def _misfit(labels: np.ndarray, shape: Tuple[int, ...], hint: str) -> InputError:
    return InputError(
        "labels-shape",
        "the labels do not fit the model's output",
        why=f"labels of shape {labels.shape} for an output of shape {shape}",
        hint=hint + "; set the class axis in the manifest: [[outputs]] kind, axis",
    )


class Accuracy:
    """Share of the labels that the original and the model predict correctly.

    Args:
        metric: a key of TOP; outputs other than class scores always count the single best.
        kind: of the labelled output.
        axis: of its classes, for scores.
    """

    def __init__(self, metric: str, kind: str = "scores", axis: int = -1) -> None:
        self.metric, self.kind, self.axis = metric, kind, axis
        self.samples = self.original = self.model = 0

    def update(self, original: np.ndarray, measured: np.ndarray, labels: np.ndarray) -> None:
        """Add one batch of answers with its labels, in a form for `read_labels`.

        Raises InputError if the labels do not fit these outputs.
        """
        classes = read_labels(labels, original.shape, self.kind, self.axis)
        self.samples += int(np.count_nonzero(classes != NONE))
        self.original += int(np.count_nonzero(self.right(original, classes)))
        # An answer of another shape counts as wrong everywhere.
        if measured.shape == original.shape:
            self.model += int(np.count_nonzero(self.right(measured, classes)))

    def right(self, answers: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Compare decisions with the classes of `read_labels`; NONE is never right."""
        labelled = classes != NONE
        k = TOP[self.metric]
        if self.kind == "scores" and k > 1 and answers.shape[self.axis] > 1:
            scores = class_scores(answers, self.axis)
            among: np.ndarray = labelled & within_top(scores, np.maximum(classes, 0), k)
            return among
        decided = decisions(answers, self.kind, self.axis)
        if decided is None:
            return np.zeros(classes.shape, dtype=bool)
        right: np.ndarray = np.logical_and(labelled, decided == classes)
        return right

    def result(self) -> Optional[MetricResult]:
        """Return the metric as JSON values; None without labels."""
        if not self.samples:
            return None
        return {
            "name": self.metric,
            "original": self.original / self.samples,
            "model": self.model / self.samples,
            "drop_points": 100.0 * (self.original - self.model) / self.samples,
            "samples": self.samples,
        }


class TaskMetric:
    """Accuracy of the labelled output.

    Args:
        outputs: of the model, in order; at least one decides.
        metric: a key of TOP.
    """

    def __init__(self, outputs: Sequence[Tensor], metric: str) -> None:
        self.outputs, self.metric = outputs, metric
        self.index = 0
        self.accuracy: Optional[Accuracy] = None

    def update(
        self,
        originals: Sequence[np.ndarray],
        measured: Sequence[np.ndarray],
        labels: np.ndarray,
    ) -> None:
        """Add one batch of answers, output by output. Raises as `Accuracy.update` does."""
        # The first batch decides which output the labels belong to.
        if self.accuracy is None:
            shapes = [array.shape for array in originals]
            self.index = labelled_output(self.outputs, shapes, labels.shape) or 0
            tensor = self.outputs[self.index]
            self.accuracy = Accuracy(self.metric, tensor.kind, tensor.axis)
        self.accuracy.update(originals[self.index], measured[self.index], labels)

    def result(self) -> Optional[MetricResult]:
        """Return `Accuracy.result`; None without labels."""
        return self.accuracy.result() if self.accuracy else None
