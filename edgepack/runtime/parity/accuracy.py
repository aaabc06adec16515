"""Measure how often the original and the model decide as the labels say."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import numpy as np

from ..errors import InputError

TOP = {"top1": 1, "top5": 5}


def within_top(scores: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
    """Whether the chosen class is among the `k` best along the last axis.

    Ties go to the lower class, as numpy.argmax has it: scores that are all equal must not make
    every class the best.
    """
    value = np.take_along_axis(scores, chosen[..., None], axis=-1)
    lower = np.arange(scores.shape[-1]) < chosen[..., None]
    ahead = np.count_nonzero((scores > value) | ((scores == value) & lower), axis=-1)
    found: np.ndarray = (ahead < k) & ~np.isnan(value[..., 0])
    return found


def _classes(labels: np.ndarray, shape: Tuple[int, ...]) -> np.ndarray:
    """Labels as indices of classes, for scores of this shape."""
    if labels.size != int(np.prod(shape[:-1])):
        raise InputError(
            "labels-shape",
            "the labels do not fit the scores",
            why="{} labels for scores of shape {}".format(labels.shape, shape),
            hint="give one label for each decision: scores have their classes along the last axis",
        )
    classes = labels.astype(np.int64)
    wrong = (classes != labels) | (classes < 0) | (classes >= shape[-1])
    if wrong.any():
        raise InputError(
            "labels-range",
            "a label is none of the model's classes",
            why="label {}; there are {} classes, counted from 0".format(
                labels[wrong].flat[0], shape[-1]
            ),
            hint="labels are indices of the scores along the last axis",
        )
    return classes.reshape(shape[:-1])


class Accuracy:
    """Top-k accuracy of the original and of the model on labelled samples."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.samples = self.original = self.model = 0

    def update(self, original: np.ndarray, measured: np.ndarray, labels: np.ndarray) -> None:
        """Take one batch: scores with classes along the last axis, labels over the others.

        Raises InputError where a label is no class of these scores.
        """
        labels = _classes(labels, original.shape)
        k = TOP[self.metric]
        self.samples += labels.size
        self.original += int(np.count_nonzero(within_top(original, labels, k)))
        self.model += int(np.count_nonzero(within_top(measured, labels, k)))

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
