"""Score a model's answers to the evaluation set by a task metric of the build host."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgepack.context.answers import read_answers
from edgepack.context.reference import OriginalScore, Reference
from edgepack.errors import MetricError
from edgepack.metrics.collect import Collector
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import compare_scores, compute, compute_steady
from edgepack.runtime.commands.verify import decode_shards
from edgepack.runtime.documents import MetricResult, Outputs


def score_original(task: TaskMetric, answers: Path) -> OriginalScore:
    """Compute the metric of the original's answers, twice. Raises MetricError."""
    with Collector() as outputs, _labels(answers) as labels:
        for batch in read_answers(answers):
            outputs.add(batch.answers, batch.count)
        value = compute_steady(task, outputs.arrays(), labels, "the original")
    return OriginalScore(task, value)


def score_model(
    original: OriginalScore,
    reference: Reference,
    outputs: Collector,
    quality: Outputs,
    *,
    steady: bool = False,
) -> MetricResult | None:
    """Return the metric of a model beside the original's.

    None if the model's answers are not finite: no metric is defined on them, and a gate on them
    is missed in any case.

    Args:
        original: the metric, and its value for the original.
        reference: the original's answers, with the labels.
        outputs: the model's answers.
        quality: metrics of every output.
        steady: compute the metric twice, and refuse two values.

    Raises MetricError.
    """
    if any(output["nonfinite"] for output in quality.values()):
        return None
    # A metric that draws random numbers would decide a gate by chance.
    measure = compute_steady if steady else compute
    with _labels(reference.answers) as labels:
        value = measure(original.task, outputs.arrays(), labels, "the optimized model")
        return compare_scores(original.task, original.value, value, len(labels))


def collect_frames(outputs: Collector, path: Path) -> None:
    """Add the answers that the loader's `verify` wrote."""
    with path.open("rb") as stream:
        for shard in decode_shards(stream):
            # Outputs count from 0 without a gap: answer-0, answer-1, ...
            answers: list[np.ndarray] = []
            while f"answer-{len(answers)}" in shard:
                answers.append(shard[f"answer-{len(answers)}"])
            outputs.add(answers, int(shard["count"]))


@contextmanager
def _labels(answers: Path) -> Iterator[np.ndarray]:
    # The labels alone: with the answers, the file may not fit into memory.
    with Collector() as labels:
        for batch in read_answers(answers):
            if batch.labels is not None:
                labels.add([batch.labels], batch.count)
        (array,) = labels.arrays()
        yield array


def require_ratio(original: OriginalScore, gates: Collection[str]) -> None:
    """Refuse a gate on the ratio to an original's metric that is not positive.

    A correlation of -0.1 has no 99 %, and no error is at most 1 % larger than an error of 0.

    Raises MetricError `metric-ratio`.
    """
    if original.value > 0 or "metric_ratio" not in gates:
        return
    name = original.task.name
    raise MetricError(
        "metric-ratio",
        f"the original's {name} is {original.value:g}, of which no share can be required",
        why="the gate metric_ratio needs a metric above 0",
        hint="check the labels, or bound the loss instead: --max-drop POINTS, in hundredths "
        f"of the unit of {name}",
    )
