"""Compute a task metric, and refuse a value that cannot be held against a gate."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from numbers import Real

import numpy as np

from edgepack.errors import EdgepackError, MetricError
from edgepack.metrics.protocol import TaskMetric
from edgepack.runtime.documents import MetricResult


def compute(
    task: TaskMetric, outputs: Sequence[np.ndarray], labels: np.ndarray, subject: str
) -> float:
    """Return the metric of a model's answers.

    Args:
        task: the metric.
        outputs: as `Metric.compute` takes them.
        labels: of the samples.
        subject: the model, for errors: "the original".

    Raises MetricError `metric-failed`, `metric-result` or `metric-not-finite`.
    """
    try:
        value: object = task.metric.compute(outputs, labels)
    except EdgepackError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise MetricError(
            "metric-failed",
            f"the metric {task.name} failed on the answers of {subject}",
            why=f"{_describe(error)}\n{_describe_arguments(outputs, labels)}",
            hint=_suggest(task),
        ) from error
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
            why=_describe_arguments(outputs, labels),
            hint="a metric must be a finite number: look for a division by zero, constant labels, "
            "or labels that are NaN",
        )
    return number


def compute_steady(
    task: TaskMetric, outputs: Sequence[np.ndarray], labels: np.ndarray, subject: str
) -> float:
    """Return the metric, computed twice. Raises MetricError `metric-unsteady` if the two differ."""
    first = compute(task, outputs, labels, subject)
    second = compute(task, outputs, labels, subject)
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


def _describe_arguments(outputs: Sequence[np.ndarray], labels: np.ndarray) -> str:
    shapes = ", ".join(f"{array.dtype} {array.shape}" for array in outputs)
    return f"outputs: {shapes}; labels: {labels.dtype} {labels.shape}"
