"""Compute a task metric, and refuse a value that cannot be held against a gate."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Protocol, cast

import numpy as np

from edgepack.errors import EdgepackError, MetricError
from edgepack.metrics.answers import Answers
from edgepack.metrics.protocol import TaskMetric
from edgepack.runtime.documents import MetricResult

# Errors that are shares: MLPerf's ratio is that of the accuracy, 1 - error.
ERROR_SHARES = ("cer", "wer")


class Comparison(Protocol):
    """Metric that compares with the original's answers in the place of labels."""

    def compare(self, outputs: Sequence[object], originals: Sequence[object]) -> float:
        """Return the metric of a model's answers, with the original's."""


def compute(
    task: TaskMetric, answers: Answers, labels: np.ndarray | Answers, subject: str
) -> float:
    """Return the metric of a model's answers.

    Args:
        task: the metric.
        answers: of the model.
        labels: of the samples; the original's answers for a metric that compares with those.
        subject: the model, for errors: "the original".

    Raises MetricError `metric-failed`, `metric-result` or `metric-not-finite`, and as
    `Postprocess.decode` does.
    """
    outputs = answers.select(task.takes)
    truth = labels.select(task.takes) if isinstance(labels, Answers) else labels
    measure: Callable[..., object] = task.metric.compute
    if isinstance(labels, Answers):
        measure = cast("Comparison", task.metric).compare
    try:
        value = measure(outputs, truth)
    except EdgepackError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise MetricError(
            "metric-failed",
            f"the metric {task.name} failed on the answers of {subject}",
            why=f"{_describe(error)}\n{_describe_arguments(outputs, truth)}",
            hint=_suggest(task),
        ) from error
    # np.array([0.93]) is a number for this purpose; True is none, though Python counts it as 1.
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MetricError(
            "metric-result",
            f"the metric {task.name} did not return a number for the answers of {subject}",
            why=f"it returned {type(value).__name__}",
            hint=_suggest(task),
        )
    number = float(value)
    if not math.isfinite(number):
        raise MetricError(
            "metric-not-finite",
            f"the metric {task.name} is {number} for the answers of {subject}",
            why=_describe_arguments(outputs, truth),
            hint="a metric must be a finite number: look for a division by zero, constant labels, "
            "or labels that are NaN",
        )
    return number


def compute_steady(
    task: TaskMetric,
    answers: tuple[Answers, Answers],
    labels: np.ndarray | Answers,
    subject: str,
) -> float:
    """Return the metric, computed twice. Raises MetricError `metric-unsteady` if the two differ.

    Args:
        task: the metric.
        answers: of the model, twice, so that a postprocess decodes them anew for each call.
        labels: as `compute` takes them.
        subject: the model, for errors.
    """
    first = compute(task, answers[0], labels, subject)
    second = compute(task, answers[1], labels, subject)
    if first != second:
        raise MetricError(
            "metric-unsteady",
            f"the metric {task.name} differs between two calls on the same answers",
            why=f"{first!r}, then {second!r}, for the answers of {subject}",
            hint="fix the seed of random numbers, and keep no state between calls",
        )
    return first


def compare_scores(task: TaskMetric, original: float, model: float, samples: int) -> MetricResult:
    """Return the metric of the original and of a model, as JSON values.

    A drop is a loss: an error (lower is better) that grows from 0.20 to 0.23 drops 3 points.
    """
    # Accuracy 0.91 to 0.90 is a loss of 0.01; an RMSE of 0.91 to 0.90 a gain of 0.01.
    loss = original - model
    if not task.metric.higher_is_better:
        loss = -loss
    return {
        "name": task.name,
        "original": original,
        "model": model,
        "drop_points": 100.0 * loss,
        "samples": samples,
        "higher_is_better": task.metric.higher_is_better,
    }


def _suggest(task: TaskMetric) -> str:
    if task.plugin is not None:
        return f"report it to the authors of {task.plugin.distribution}"
    if task.origin:
        return f"{task.origin} takes (outputs, labels) and returns a float"
    return "check the labels of the evaluation samples"


def _describe(error: Exception) -> str:
    """Return an exception with the last line of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({frames[-1].filename}, line {frames[-1].lineno})"


def _describe_arguments(outputs: Sequence[object], labels: Sequence[object] | np.ndarray) -> str:
    return f"outputs: {_describe_arrays(outputs)}; labels: {_describe_arrays(labels)}"


def _describe_arrays(values: Sequence[object] | np.ndarray) -> str:
    """Return types and shapes: "float32 (20, 10), int64 (20,)"; "20 dict" for results."""
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {values.shape}"
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values) <= _FEW:
        return ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
    kinds = sorted({type(value).__name__ for value in values})
    return f"{len(values)} {' or '.join(kinds)}"


# Arrays that an error lists; more are the results of samples.
_FEW = 8
