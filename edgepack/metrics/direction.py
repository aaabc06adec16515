"""Direction that a user's metric states, against labels of other samples."""

from __future__ import annotations

import numpy as np

from edgepack.errors import MetricError
from edgepack.metrics.answers import Answers
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import compute

# Labels are copied in another order only up to this size.
LARGEST = 256 * 1024 * 1024
# A metric that reads no label changes by rounding alone when they are exchanged.
ROUNDING = 1e-3


def doubt_direction(task: TaskMetric, value: float, labels: np.ndarray, answers: Answers) -> str:
    """Return a reason to doubt the direction of a user's function; "" if there is none.

    An error rate of 0.003 is 0.9 with the labels of other samples. If higher is said to be better,
    the metric likes wrong answers. It is a doubt alone: a gap between groups may close by itself.

    Args:
        task: the metric.
        value: of the original.
        labels: of the samples.
        answers: of the original.
    """
    if not task.origin or labels.nbytes > LARGEST:
        return ""
    order = np.random.default_rng(0).permutation(len(labels))
    try:
        exchanged = compute(task, answers, labels[order], "the original")
    except MetricError:
        # Labels may fit no sample but their own.
        return ""
    gain = exchanged - value
    if not task.metric.higher_is_better:
        gain = -gain
    if gain <= ROUNDING * max(abs(value), abs(exchanged)):
        return ""
    return (
        f"the metric {task.name} is better with the labels of other samples, {exchanged:.4g}, than "
        f"with their own, {value:.4g}: check that {task.name}.higher_is_better should be "
        f"{task.metric.higher_is_better}"
    )
