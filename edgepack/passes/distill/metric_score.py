"""Score of a student by the task metric of the build, on the held-out training samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data.store import LABELS
from edgepack.metrics.answers import Answers, collect_answers
from edgepack.metrics.collect import Collector
from edgepack.metrics.postprocess import Postprocess
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import ERROR_SHARES, compute
from edgepack.passes.distill.loss import Head
from edgepack.passes.distill.teacher import Teacher
from edgepack.passes.module import ModuleContext
from edgepack.passes.training.training_set import TrainingSet

if TYPE_CHECKING:
    import torch

    # Outputs of a network, all of them or some by index.
    Outputs = Mapping[int, torch.Tensor] | Sequence[torch.Tensor]

# With fewer held-out samples, a metric is less precise than the agreement with the teacher.
LEAST = 200


@dataclass(frozen=True)
class MetricScore:
    """Task metric as the score of a training: of an error, its negative.

    Attributes:
        task: the metric.
        postprocess: decodes the outputs; None for none.
        count: number of outputs.
    """

    task: TaskMetric
    postprocess: Postprocess | None
    count: int

    @staticmethod
    def find(
        context: ModuleContext, heads: Sequence[Head], data: TrainingSet
    ) -> MetricScore | None:
        """Return the score by the build's metric; None if the held-out samples cannot measure it.

        It needs every output, and a label for each of at least `LEAST` samples.
        """
        task = context.metric
        if task is None or len(heads) != len(context.outputs) or len(data.held_out) < LEAST:
            return None
        if not task.against_original and data.count_labels(data.held_out) < len(data.held_out):
            return None
        return MetricScore(task, context.postprocess, len(heads))

    @property
    def name(self) -> str:
        """Name of the score: "neg_rmse" for an error, as in scikit-learn."""
        return self.task.name if self.task.metric.higher_is_better else f"neg_{self.task.name}"

    def score(
        self,
        data: TrainingSet,
        teacher: Teacher,
        answer: Callable[[np.ndarray, tuple[torch.Tensor, ...]], Outputs],
    ) -> float | None:
        """Return the score of a network; None without held-out samples. Raises MetricError."""
        with ExitStack() as stack:
            ours, truth = stack.enter_context(Collector()), stack.enter_context(Collector())
            for members in data.batches(data.held_out):
                feed = data.feed(members)
                ours.add(self._read(answer(members, feed)), len(members))
                if self.task.against_original:
                    truth.add(self._read(teacher.answers(members, feed)), len(members))
                else:
                    truth.add([data.store.rows(LABELS, members)], len(members))
            if not ours.count:
                return None
            labels: np.ndarray | Answers = collect_answers(truth, self.postprocess)
            if not self.task.against_original:
                labels = truth.arrays()[0]
            answers = collect_answers(ours, self.postprocess)
            value = compute(self.task, answers, labels, "the student")
        return value if self.task.metric.higher_is_better else -value

    def _read(self, outputs: Outputs) -> list[np.ndarray]:
        return [outputs[index].detach().cpu().numpy() for index in range(self.count)]

    def find_goal(self, teacher: float, gates: Mapping[str, float]) -> float | None:
        """Return the score at which the gates on the metric pass; None without any.

        A teacher with an error of 0.20, a score of -0.20, and a ratio of 0.8 gives -0.25.
        """
        bounds = []
        if "max_drop" in gates:
            bounds.append(teacher - gates["max_drop"] / 100)
        if "metric_ratio" in gates:
            ratio = gates["metric_ratio"]
            if self.task.metric.higher_is_better:
                bounds.append(teacher * ratio)
            elif self.task.name in ERROR_SHARES:
                bounds.append((1 + teacher) * ratio - 1)
            elif ratio:
                bounds.append(teacher / ratio)
        return max(bounds, default=None)
