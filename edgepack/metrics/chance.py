"""Original's metric against that of guessing, which no gate could distinguish from a collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgepack.metrics.answers import Answers
from edgepack.metrics.protocol import RESULTS, TaskMetric

# Standard deviations of a one-sided normal test at 1 %.
DEVIATIONS = 2.326
# Mean average precision of a detector that finds next to nothing.
LEAST_MAP = 0.01


def explain_chance(task: TaskMetric, value: float, labels: np.ndarray, answers: Answers) -> str:
    """Return the reason why a metric of the original is no better than guessing; "" if it is.

    A user's function, errors and similarities have no value of guessing. `stages.labels` tests the
    metrics of decisions, by the number of right samples.

    Args:
        task: the metric.
        value: of the original.
        labels: of the samples.
        answers: of the original.
    """
    if task.origin or task.against_original:
        return ""
    explain = _EXPLAIN.get(task.name)
    reason = explain(value, labels) if explain else ""
    if not reason and task.name in ("cer", "wer") and task.takes == RESULTS:
        reason = _explain_constant(answers.select(RESULTS), labels)
    return f"{task.name} {value:.4g} on {len(labels):,} samples; {reason}" if reason else ""


def _explain_correlation(value: float, labels: np.ndarray) -> str:
    """Test a correlation r of n samples by sqrt(n - 1) r, and by Fisher's (1915) atanh(r).

    As in `stages.labels`, guessing has to explain the value, and a useful model, halfway between
    guessing and perfection, must not: for n = 100 that is r < 0.23 and r < 0.31.
    """
    count = len(labels)
    if count < 4:
        return ""
    # r = 0.2 on 50 samples: 0.2 * 7 = 1.4 deviations, which guessing reaches often.
    lucky = value * math.sqrt(count - 1) < DEVIATIONS
    distance = math.atanh(min(max(value, -0.999), 0.999)) - math.atanh(0.5)
    if lucky and distance * math.sqrt(count - 3) < -DEVIATIONS:
        return "guessing is at 0"
    return ""


def _explain_area(value: float, labels: np.ndarray) -> str:
    """Test an area by its deviation under guessing, of Mann and Whitney (1947).

    With p samples of a class and q others it is sqrt((p + q + 1) / (12 p q)): 0.058 for 50 and 50.
    """
    # Of classes of about equal size: 100 samples of 4 are 25 members and 75 others each.
    classes = max(len(np.unique(labels)), 2)
    members = labels.size / classes
    others = labels.size - members
    deviation = math.sqrt((labels.size + 1) / (12 * members * others))
    if value - 0.5 < DEVIATIONS * deviation and value - 0.75 < -DEVIATIONS * deviation:
        return "guessing is at 0.5"
    return ""


def _explain_precision(value: float, _: np.ndarray) -> str:
    return "guessing is at 0" if value < LEAST_MAP else ""


def _explain_error(value: float, _: np.ndarray) -> str:
    return "an empty answer has an error of 1" if value >= 1 else ""


def _explain_constant(results: Sequence[object], labels: np.ndarray) -> str:
    """Return a reason if all samples have the same text, though their labels differ."""
    texts, expected = {str(text) for text in results}, {str(label) for label in labels}
    if len(texts) == 1 and len(expected) > 1:
        return f"every answer is {texts.pop()!r}"
    return ""


_EXPLAIN: dict[str, Callable[[float, np.ndarray], str]] = {
    "pearson": _explain_correlation,
    "spearman": _explain_correlation,
    "auroc": _explain_area,
    "map": _explain_precision,
    "cer": _explain_error,
    "wer": _explain_error,
}
