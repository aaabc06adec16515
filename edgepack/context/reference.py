"""Reference samples of the bundle, and the original's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.bundle import OtherSize
from edgepack.context.labels import Labels, OutputKind
from edgepack.metrics.postprocess import Postprocess
from edgepack.metrics.protocol import TaskMetric

if TYPE_CHECKING:
    from edgepack.runtime.preprocess.protocol import Preprocessing


@dataclass(frozen=True)
class OriginalScore:
    """Task metric of the original.

    Attributes:
        task: the metric.
        value: its value for the original's answers to the evaluation set.
        chance: reason why it is no better than guessing; "" if it is.
        doubt: reason to doubt the direction that a user's function states; "" if there is none.
    """

    task: TaskMetric
    value: float
    chance: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Reference:
    """Reference samples of the bundle, and the original's answers to all evaluation samples.

    Attributes:
        feeds: the reference samples, one call each.
        original: per feed, the outputs of the original model.
        answers: file of the original's answers on the evaluation set, see `context.answers`.
        kinds: of the outputs.
        labels: use of the labels of the evaluation samples.
        digest: of everything that determines these answers.
        sizes: the original's answers at one other size of every dynamic axis.
        raw: per feed, the raw data that it was made of, one for each row; empty for arrays.
        preprocessing: conversion of raw data to feeds; None for arrays.
        scores: the original's task metrics, without one that the loader counts.
        postprocess: decodes the outputs for the metrics; None for none.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    original: Sequence[Sequence[np.ndarray]]
    answers: Path
    kinds: tuple[OutputKind, ...]
    labels: Labels
    digest: str
    sizes: Sequence[OtherSize] = ()
    raw: Sequence[Sequence[bytes]] = ()
    preprocessing: Preprocessing | None = None
    scores: Sequence[OriginalScore] = ()
    postprocess: Postprocess | None = None
