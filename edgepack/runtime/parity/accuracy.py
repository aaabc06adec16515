"""Measure decisions: which class an output chooses, and how often the labels name the same one."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..tensor import Tensor

TOP = {"top1": 1, "top5": 5}
# Values that mark a position without a class, where a sample has a label for each of several
# positions: -100 as in torch's losses, 255 as in segmentation data sets of fewer classes.
UNLABELLED = (-100, -1, 255)
# "No class", among decisions and labels.
NONE = -1
# Kinds of outputs that decide, in the order in which labels are taken to be theirs.
DECIDING = ("scores", "logit", "probability", "classes")


def class_scores(array: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return class scores with their classes along the last axis."""
    return np.moveaxis(array, axis, -1)


def decisions(array: np.ndarray, kind: str, axis: int = -1) -> Optional[np.ndarray]:
    """Return the class that an output chooses for each decision, int64; NONE where it is NaN.

    "scores" chooses the largest along its class axis, which the result lacks; "logit" class 1
    above 0, "probability" class 1 above 0.5, "classes" holds the choice itself. Scores of a
    single class are taken as a logit: the largest of one is no choice. None for "values", and
    for scores without a class axis.
    """
    if kind == "scores":
        if array.ndim == 0 or not array.size:
            return None
        scores = class_scores(array, axis)
        if scores.shape[-1] > 1:
            best = np.argmax(scores, axis=-1)
            chosen = np.take_along_axis(scores, best[..., None], axis=-1)[..., 0]
            return np.where(np.isnan(chosen), NONE, best)
        return decisions(scores[..., 0], "logit")
    if kind in ("logit", "probability"):
        above = array > (0.5 if kind == "probability" else 0.0)
        return np.where(np.isnan(array), NONE, above.astype(np.int64))
    return array.astype(np.int64) if kind == "classes" else None


def agreement(
    original: np.ndarray, measured: np.ndarray, kind: str, axis: int = -1
) -> Tuple[int, int, int]:
    """Count decisions, those that are the same, and those still among the five best measured.

    What is no scores of classes has one best: its two counts of agreement are the same.
    """
    chosen, found = decisions(original, kind, axis), decisions(measured, kind, axis)
    if chosen is None or found is None:
        return 0, 0, 0
    same = int(np.count_nonzero((chosen == found) & (found != NONE)))
    if kind != "scores" or class_scores(original, axis).shape[-1] == 1:
        return chosen.size, same, same
    scores = class_scores(measured, axis)
    among = within_top(scores, np.maximum(chosen, 0), 5) & (chosen != NONE)
    return chosen.size, same, int(np.count_nonzero(among))


def within_top(scores: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
    """Tell where the chosen class is among the `k` best along the last axis.

    Ties go to the lower class, as numpy.argmax has it: scores that are all equal must not make
    every class the best.
    """
    value = np.take_along_axis(scores, chosen[..., None], axis=-1)
    lower = np.arange(scores.shape[-1]) < chosen[..., None]
    ahead = np.count_nonzero((scores > value) | ((scores == value) & lower), axis=-1)
    among: np.ndarray = (ahead < k) & ~np.isnan(value[..., 0])
    return among


def _squeezed(shape: Sequence[int]) -> Tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _decided_shape(shape: Sequence[int], kind: str, axis: int) -> Tuple[int, ...]:
    """Return the shape of an output's decisions."""
    if kind != "scores" or not shape:
        return tuple(shape)
    removed = axis % len(shape)
    return (*shape[:removed], *shape[removed + 1 :])


def labels_fit(
    shape: Sequence[int], labels: Sequence[int], kind: str = "scores", axis: int = -1
) -> bool:
    """Tell whether labels of a shape are one for each decision of an output, or one-hot.

    Axes of size 1 do not matter. Labels of scores with the classes last may be flattened.
    """
    decided = _decided_shape(shape, kind, axis)
    if _squeezed(labels) == _squeezed(decided):
        return True
    if kind != "scores":
        return False
    flat = int(np.prod(labels)) == int(np.prod(decided))
    last = axis in (-1, len(shape) - 1) and len(shape) < 4
    return tuple(labels) == tuple(shape) or (flat and last)


def labelled_output(
    outputs: Sequence[Tensor], shapes: Sequence[Sequence[int]], labels: Sequence[int]
) -> Optional[int]:
    """Return the index of the output that labels of a shape are of: the first that they fit.

    Class scores come before logits and probabilities, those before integer classes. Where the
    labels fit none, the first that decides; None where no output decides.
    """
    deciding = sorted(
        (i for i, tensor in enumerate(outputs) if tensor.kind in DECIDING),
        key=lambda i: DECIDING.index(outputs[i].kind),
    )
    fitting = [
        i for i in deciding if labels_fit(shapes[i], labels, outputs[i].kind, outputs[i].axis)
    ]
    return next(iter(fitting or deciding), None)


def is_one_hot(labels: np.ndarray, axis: int) -> bool:
    """Tell whether labels hold a single 1 along an axis, and 0 beside it."""
    binary = bool(((labels == 0) | (labels == 1)).all())
    return binary and bool((np.sum(labels, axis=axis) == 1).all())


def read_labels(
    labels: np.ndarray, shape: Tuple[int, ...], kind: str = "scores", axis: int = -1
) -> np.ndarray:
    """Return labels as int64 classes in the shape of an output's decisions.

    Args:
        labels: a class for each decision, or one-hot in the shape of the scores. Where a sample
            has several decisions, UNLABELLED marks those without a class, which are NONE here.
        shape: of the output.
        kind: of the output; one that decides.
        axis: of its classes, where it is scores.

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
            raise _misfit(labels, shape, "labels of the shape of the scores must be one-hot")
        labels = np.argmax(labels, axis=axis)
    with np.errstate(invalid="ignore"):
        classes = labels.astype(np.int64)
    unlabelled = np.zeros(labels.shape, dtype=bool)
    if int(np.prod(decided[1:])) > 1:
        marks = [mark for mark in UNLABELLED if mark < 0 or (count is not None and mark >= count)]
        unlabelled = np.isin(classes, marks)
    wrong = (classes != labels) | ((classes < 0) & ~unlabelled)
    if count is not None:
        wrong |= (classes >= count) & ~unlabelled
    if wrong.any():
        raise InputError(
            "labels-range",
            "a label is none of the model's classes",
            why="label {}; {}".format(
                labels[wrong].flat[0],
                "classes are whole numbers, counted from 0"
                if count is None
                else "there are {} classes, counted from 0".format(count),
            ),
            hint="labels are indices of classes, in the order in which the model scores them",
        )
    return np.where(unlabelled, NONE, classes).reshape(decided)


def _misfit(labels: np.ndarray, shape: Tuple[int, ...], hint: str) -> InputError:
    return InputError(
        "labels-shape",
        "the labels do not fit the model's output",
        why="labels of shape {} for an output of shape {}".format(labels.shape, shape),
        hint=hint + "; a manifest names the class axis: [[outputs]] kind, axis",
    )


class Accuracy:
    """Share of the labels that the original and the model decide right.

    Args:
        metric: a key of TOP. Outputs that are no scores of classes have one best, whatever it is.
        kind: of the output that the labels are of.
        axis: of its classes, where it is scores.
    """

    def __init__(self, metric: str, kind: str = "scores", axis: int = -1) -> None:
        self.metric, self.kind, self.axis = metric, kind, axis
        self.samples = self.original = self.model = 0

    def update(self, original: np.ndarray, measured: np.ndarray, labels: np.ndarray) -> None:
        """Take one batch of answers, and what `read_labels` takes.

        Raises InputError where the labels do not fit these outputs.
        """
        classes = read_labels(labels, original.shape, self.kind, self.axis)
        self.samples += int(np.count_nonzero(classes != NONE))
        self.original += int(np.count_nonzero(self.right(original, classes)))
        # An answer of another shape is right nowhere.
        if measured.shape == original.shape:
            self.model += int(np.count_nonzero(self.right(measured, classes)))

    def right(self, answers: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Tell which decisions are the classes of `read_labels`; none is where there is NONE."""
        labelled = classes != NONE
        k = TOP[self.metric]
        if self.kind == "scores" and k > 1 and answers.shape[self.axis] > 1:
            scores = class_scores(answers, self.axis)
            among: np.ndarray = labelled & within_top(scores, np.maximum(classes, 0), k)
            return among
        chosen = decisions(answers, self.kind, self.axis)
        if chosen is None:
            return np.zeros(classes.shape, dtype=bool)
        right: np.ndarray = np.logical_and(labelled, chosen == classes)
        return right

    def result(self) -> Optional[Dict[str, Any]]:
        """As JSON; None where there were no labels."""
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
    """Accuracy of the output that the labels are of.

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
        """Take one batch of answers, output by output. Raises as `Accuracy.update` does."""
        if self.accuracy is None:
            shapes = [array.shape for array in originals]
            self.index = labelled_output(self.outputs, shapes, labels.shape) or 0
            tensor = self.outputs[self.index]
            self.accuracy = Accuracy(self.metric, tensor.kind, tensor.axis)
        self.accuracy.update(originals[self.index], measured[self.index], labels)

    def result(self) -> Optional[Dict[str, Any]]:
        """As `Accuracy.result`; None where there were no labels."""
        return self.accuracy.result() if self.accuracy else None
