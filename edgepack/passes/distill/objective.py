"""Objective of a distillation: the teacher's outputs, and the labels if there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ChainError
from edgepack.passes.distill.features import Features
from edgepack.passes.distill.labels import choose_labelled_head
from edgepack.passes.distill.loss import compute_hard_loss, compute_soft_loss
from edgepack.passes.distill.metric_score import MetricScore
from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.distill.teacher import Teacher, to_outputs
from edgepack.passes.module import ModuleContext
from edgepack.passes.training.training_set import TrainingSet, has_label

if TYPE_CHECKING:
    import torch
    from torch import nn

    # Outputs of a network, all of them or some by index.
    Outputs = Mapping[int, torch.Tensor] | Sequence[torch.Tensor]

# With fewer labelled held-out samples, top-1 is less precise than the agreement with the teacher.
MIN_LABELLED = 200
TOP1, AGREEMENT, SNR = "top-1", "agreement", "SNR in dB"


class Distillation:
    """The objective of `distill`; see `training.loop.Objective`.

    Args:
        network: the original, in eval mode, on the device of `data`.
        student: the network to train, still on the CPU.
        data: the training samples.
        context: of the pass.
        options: of the pass.

    Raises ChainError: distill-student, distill-outputs, distill-labels, distill-nothing,
        distill-features, distill-none-held-out, distill-no-gate.
    """

    def __init__(
        self, network: nn.Module, student: nn.Module, data: TrainingSet, context: ModuleContext,
        options: DistillOptions,
    ) -> None:  # fmt: skip
        self.data, self.options, self.gates = data, options, context.gates
        self.teacher = Teacher(network, data)
        self.heads = self.teacher.heads(student, context.outputs)
        self.labelled = choose_labelled_head(self.heads, data, self.teacher, options)
        # Stored outputs would not match augmented batches, and do not include features.
        if not options.augment and not options.features and data.exact is None:
            self.teacher.store_outputs(self.heads, context.work / "answers", context.progress)
        self.judged = next((head for head in self.heads if head.scores), None)
        by_label = self.labelled is not None and data.count_labels(data.held_out) >= MIN_LABELLED
        self.measured = MetricScore.find(context, self.heads, data)
        if self.measured is not None:
            self.score_name = self.measured.name
        elif self.judged is None:
            self.score_name = SNR
        elif by_label:
            self.score_name = TOP1
        else:
            self.score_name = AGREEMENT
        # The gates of a metric are relative to the teacher's.
        self.teacher_score: float | None = None
        if self.score_name == TOP1 or self.measured is not None:
            self.teacher_score = self._score(self.teacher.answers)
        if options.stop != "none" and next(data.batches(data.held_out), None) is None:
            batch, count = data.exact or 1, data.store.count
            raise ChainError(
                "distill-none-held-out",
                f"stop={options.stop} needs held-out samples, and there are none",
                why=f"{options.holdout:g} of {count:,} training samples are fewer than {batch}",
                hint=f"holdout={min(2 * batch / count, 0.5):.2g} or more, or stop=none",
            )
        if options.stop == "gate" and self.find_goal() is None:
            raise ChainError(
                "distill-no-gate",
                "no quality gate can end the training",
                why=f"the held-out samples measure the {self.score_name}, which has no gate",
                hint="stop=plateau, or stop=none",
            )
        self.features: Features | None = None
        if options.features:
            self.features = Features(options, network, student)

    def loss(
        self, model: nn.Module, members: np.ndarray, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the sum of the losses of some samples."""
        feed = self.data.feed(members, generator)
        # The teacher runs first, because the student may write into its inputs.
        teacher = self.teacher.answers(members, feed)
        student = to_outputs(model(*feed))
        count = len(members)
        total = compute_soft_loss(self.heads, student, teacher, count, self.options)
        if self.labelled is not None:
            labels = self.data.labels(members)
            hard, labelled = compute_hard_loss(self.labelled, student, labels, count)
            # alpha for a sample with a label, 1 (the soft loss alone) for one without.
            alpha = 1 - (1 - self.options.alpha) * labelled
            total = alpha * total + (1 - alpha) * hard
        if self.features is not None:
            total = total + self.options.feature_weight * self.features.loss(count)
        return total.sum()

    def score(self, model: nn.Module) -> float | None:
        """Score the student on the held-out samples, the higher the better.

        Top-1 or agreement, 0..1, SNR in dB, or the build's task metric.
        """
        import torch

        def answers(
            _members: np.ndarray, feed: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                return to_outputs(model(*feed))

        return self._score(answers)

    def reached(self, score: float) -> bool:
        """Return True if the score passes the quality gate."""
        goal = self.find_goal()
        return goal is not None and score >= goal

    def find_goal(self) -> float | None:
        """Return the score at which the quality gate passes; None if no gate bounds it.

        A teacher with a top-1 of 0.90 and max_drop = 1 (percent) gives 0.89.
        """
        # Each kind of score has its own gates, in the unit of the score.
        if self.measured is not None and self.teacher_score is not None:
            return self.measured.find_goal(self.teacher_score, self.gates)
        if self.score_name == SNR:
            return self.gates.get("snr_db")
        if self.score_name == AGREEMENT or self.teacher_score is None:
            return self.gates.get("agreement")
        # Both gates have to pass, hence the larger bound.
        bounds = []
        if "max_drop" in self.gates:
            bounds.append(self.teacher_score - self.gates["max_drop"] / 100)
        if "metric_ratio" in self.gates:
            bounds.append(self.teacher_score * self.gates["metric_ratio"])
        return max(bounds, default=None)

    def close(self) -> None:
        """Remove the hooks from both networks."""
        if self.features is not None:
            self.features.close()

    def _score(
        self, answers: Callable[[np.ndarray, tuple[torch.Tensor, ...]], Outputs]
    ) -> float | None:
        """Score the outputs of a network on the held-out samples; None without any."""
        if self.measured is not None:
            return self.measured.score(self.data, self.teacher, answers)
        # Sums over all batches first, so that the size of the batches does not matter.
        good = total = 0.0
        for members in self.data.batches(self.data.held_out):
            feed = self.data.feed(members)
            theirs = self.teacher.answers(members, feed)
            counts = self._compare(answers(members, feed), theirs, members)
            good, total = good + counts[0], total + counts[1]
        if not total:
            return None
        if self.score_name == SNR:
            return 10 * math.log10(max(good, 1e-30) / total)
        return good / total

    def _compare(self, ours: Outputs, theirs: Outputs, members: np.ndarray) -> tuple[float, float]:
        """Return correct and total decisions of a batch; for values, signal and squared error."""
        if self.judged is None:
            signal = error = 0.0
            for head in self.heads:
                output, expected = ours[head.index].double(), theirs[head.index].double()
                signal += float(expected.square().sum())
                error += float((output - expected).square().sum())
            return signal, max(error, 1e-30)
        decisions = self.judged.arrange(ours[self.judged.index]).argmax(-1)
        if self.score_name == AGREEMENT:
            same = decisions == self.judged.arrange(theirs[self.judged.index]).argmax(-1)
            return float(same.sum()), float(same.numel())
        # Samples, or positions, without a label count neither as correct nor in total.
        labels = self.data.labels(members)
        labelled = has_label(labels)
        return float(((decisions == labels) & labelled).sum()), float(labelled.sum())
