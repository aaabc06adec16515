"""Score a model's answers to the evaluation set by the task metrics of the build host."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from edgepack.context.answers import read_answers
from edgepack.context.reference import OriginalScore, Reference
from edgepack.errors import MetricError
from edgepack.metrics.answers import Answers, collect_answers
from edgepack.metrics.chance import explain_chance
from edgepack.metrics.collect import Collector
from edgepack.metrics.direction import doubt_direction
from edgepack.metrics.postprocess import Postprocess
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import ERROR_SHARES, compare_scores, compute, compute_steady
from edgepack.runtime.commands.verify import decode_shards
from edgepack.runtime.documents import MetricResult, Outputs


def score_original(
    tasks: Sequence[TaskMetric], postprocess: Postprocess | None, answers: Path
) -> tuple[OriginalScore, ...]:
    """Compute the metrics of the original's answers, twice. Raises MetricError."""
    if not tasks:
        return ()
    with Collector() as outputs, _labels(answers) as labels:
        for batch in read_answers(answers):
            outputs.add(batch.answers, batch.count)
        pair = _answer_twice(outputs, postprocess)
        scores = []
        for task in tasks:
            # The original's answers to themselves: 1 for a similarity, 0 for a distance.
            truth = _find_truth(task, labels, pair[0])
            value = compute_steady(task, pair, truth, "the original")
            chance = doubt = ""
            if isinstance(truth, np.ndarray):
                chance = explain_chance(task, value, truth, pair[0])
                doubt = doubt_direction(task, value, truth, pair[0])
            scores.append(OriginalScore(task, value, chance, doubt))
    return tuple(scores)


def score_model(
    reference: Reference, outputs: Collector, quality: Outputs, *, steady: bool = False
) -> list[MetricResult]:
    """Return the metrics of a model beside the original's; those that the build host computes.

    None of them if the model's answers are not finite: no metric is defined on them, and a gate
    on them is missed in any case.

    Args:
        reference: the original's metrics, and its answers with the labels.
        outputs: the model's answers.
        quality: metrics of every output.
        steady: compute each metric twice, and refuse two values.

    Raises MetricError.
    """
    scores = reference.scores
    if not scores or any(output["nonfinite"] for output in quality.values()):
        return []
    results = []
    with ExitStack() as stack:
        labels = stack.enter_context(_labels(reference.answers))
        original = None
        if any(score.task.against_original for score in scores):
            collector = stack.enter_context(Collector())
            for batch in read_answers(reference.answers):
                collector.add(batch.answers, batch.count)
            original = collect_answers(collector, reference.postprocess)
        pair = _answer_twice(outputs, reference.postprocess)
        count = outputs.count
        for task, before in ((score.task, score.value) for score in scores):
            truth = _find_truth(task, labels, original)
            # A metric that draws random numbers would decide a gate by chance.
            if steady:
                value = compute_steady(task, pair, truth, "the optimized model")
            else:
                value = compute(task, pair[0], truth, "the optimized model")
            results.append(compare_scores(task, before, value, count))
    return results


def _answer_twice(outputs: Collector, postprocess: Postprocess | None) -> tuple[Answers, Answers]:
    return collect_answers(outputs, postprocess), collect_answers(outputs, postprocess)


def _find_truth(
    task: TaskMetric, labels: np.ndarray | None, original: Answers | None
) -> np.ndarray | Answers:
    """Return the labels, or the original's answers for a metric that compares with those."""
    truth = original if task.against_original else labels
    # The catalogue refuses a metric that needs labels which are missing.
    if truth is None:
        raise ValueError(f"the metric {task.name} has nothing to compare with")
    return truth


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
def _labels(answers: Path) -> Iterator[np.ndarray | None]:
    # The labels alone: with the answers, the file may not fit into memory.
    with Collector() as labels:
        for batch in read_answers(answers):
            if batch.labels is not None:
                labels.add([batch.labels], batch.count)
        yield next(iter(labels.arrays()), None)


def require_ratio(original: OriginalScore, gates: Collection[str]) -> None:
    """Refuse a gate on the ratio to an original's metric that is not positive.

    A correlation of -0.1 has no 99 %, and no error is at most 1 % larger than an error of 0.

    Raises MetricError `metric-ratio`.
    """
    value = original.value
    if original.task.name in ERROR_SHARES:
        value = 1 - value
    if value > 0 or "metric_ratio" not in gates:
        return
    name = original.task.name
    raise MetricError(
        "metric-ratio",
        f"the original's {name} is {original.value:g}, of which no share can be required",
        why="the gate metric_ratio needs a metric above 0",
        hint="check the labels, or bound the loss instead: --max-drop POINTS, in hundredths "
        f"of the unit of {name}",
    )
