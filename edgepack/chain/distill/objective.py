"""What a distillation is to reach: the teacher's answers, and the labels where there are any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgepack.chain.distill.features import Features
from edgepack.chain.distill.labels import labelled_head
from edgepack.chain.distill.loss import hard_loss, soft_loss
from edgepack.chain.distill.options import DistillOptions
from edgepack.chain.distill.teacher import Teacher, outputs_of
from edgepack.chain.module import Context
from edgepack.chain.training.data import TrainingSet, has_label
from edgepack.errors import ChainError

# Labelled samples held out from which their top-1 tells more than the agreement with the teacher.
MIN_LABELLED = 200
TOP1, AGREEMENT, SNR = "top-1", "agreement", "SNR in dB"


class Distillation:
    """The objective of `distill`; see `training.loop.Objective`.

    Args:
        network: the original, in eval mode, on the device of `data`.
        student: what is trained, on the CPU still.
        data: the training samples.
        context: of the pass.
        options: of the pass.

    Raises ChainError: distill-student, distill-outputs, distill-labels, distill-nothing,
        distill-features, distill-none-held-out, distill-no-gate.
    """

    def __init__(
        self, network: Any, student: Any, data: TrainingSet, context: Context,
        options: DistillOptions,
    ) -> None:  # fmt: skip
        self.data, self.options, self.gates = data, options, context.gates
        self.teacher = Teacher(network, data)
        self.heads = self.teacher.heads(student, context.outputs)
        self.labelled = labelled_head(self.heads, data, self.teacher, options)
        # An augmented batch is another each time, and features are not kept.
        if not options.augment and not options.features and data.exact is None:
            self.teacher.keep(self.heads, context.work / "answers", context.progress)
        self.judged = next((head for head in self.heads if head.scores), None)
        by_label = self.labelled is not None and data.count_labels(data.held) >= MIN_LABELLED
        self.score_name = SNR if self.judged is None else TOP1 if by_label else AGREEMENT
        self.teacher_score = self._score(self.teacher.answers) if self.score_name == TOP1 else None
        if options.stop != "none" and next(data.batches(data.held), None) is None:
            batch, count = data.exact or 1, data.store.count
            raise ChainError(
                "distill-none-held-out",
                f"stop={options.stop} needs samples that are held out, and there are none",
                why=f"{options.holdout:g} of {count:,} training samples are fewer than {batch}",
                hint=f"holdout={min(2 * batch / count, 0.5):.2g} or more, or stop=none",
            )
        if options.stop == "gate" and self.goal() is None:
            raise ChainError(
                "distill-no-gate",
                "there is no quality gate that could end the training",
                why=f"the samples held out tell the {self.score_name}, and no gate is on it",
                hint="stop=plateau, or stop=none",
            )
        self.features = Features(options, network, student) if options.features else None

    def loss(self, model: Any, members: np.ndarray, generator: Any) -> Any:
        """The sum of the losses of some samples."""
        feed = self.data.feed(members, generator)
        # The teacher first: what it shall answer to is as the student is given it.
        teacher = self.teacher.answers(members, feed)
        student = outputs_of(model(*feed))
        count = len(members)
        total = soft_loss(self.heads, student, teacher, count, self.options)
        if self.labelled is not None:
            labels = self.data.labels(members)
            hard, known = hard_loss(self.labelled, student, labels, count)
            alpha = 1 - (1 - self.options.alpha) * known
            total = alpha * total + (1 - alpha) * hard
        if self.features is not None:
            total = total + self.options.feature_weight * self.features.loss(count)
        return total.sum()

    def score(self, model: Any) -> float | None:
        """The student on the held-out samples: top-1 or agreement, 0..1, or SNR in dB."""
        import torch

        def answers(_members: np.ndarray, feed: tuple[Any, ...]) -> tuple[Any, ...]:
            with torch.no_grad():
                return outputs_of(model(*feed))

        return self._score(answers)

    def reached(self, score: float) -> bool:
        """Whether the score holds the quality gate."""
        goal = self.goal()
        return goal is not None and score >= goal

    def goal(self) -> float | None:
        """The score that holds the quality gate; None where no gate is on it."""
        if self.score_name == SNR:
            return self.gates.get("snr_db")
        if self.score_name == AGREEMENT or self.teacher_score is None:
            return self.gates.get("agreement")
        bounds = []
        if "max_drop" in self.gates:
            bounds.append(self.teacher_score - self.gates["max_drop"] / 100)
        if "metric_ratio" in self.gates:
            bounds.append(self.teacher_score * self.gates["metric_ratio"])
        return max(bounds, default=None)

    def close(self) -> None:
        """Take off what was hung on the networks."""
        if self.features is not None:
            self.features.close()

    def _score(self, answers: Callable[[np.ndarray, tuple[Any, ...]], Any]) -> float | None:
        good = total = 0.0
        for members in self.data.batches(self.data.held):
            feed = self.data.feed(members)
            theirs = self.teacher.answers(members, feed)
            found = self._compared(answers(members, feed), theirs, members)
            good, total = good + found[0], total + found[1]
        if not total:
            return None
        if self.score_name == SNR:
            return 10 * math.log10(max(good, 1e-30) / total)
        return good / total

    def _compared(self, ours: Any, theirs: Any, members: np.ndarray) -> tuple[float, float]:
        """Right decisions and how many there are; of values, signal and squared error."""
        if self.judged is None:
            pairs = [(ours[h.index].double(), theirs[h.index].double()) for h in self.heads]
            error = sum(float((one - other).square().sum()) for one, other in pairs)
            return sum(float(other.square().sum()) for _, other in pairs), max(error, 1e-30)
        chosen = self.judged.arrange(ours[self.judged.index]).argmax(-1)
        if self.score_name == AGREEMENT:
            same = chosen == self.judged.arrange(theirs[self.judged.index]).argmax(-1)
            return float(same.sum()), float(same.numel())
        labels = self.data.labels(members)
        known = has_label(labels)
        return float(((chosen == labels) & known).sum()), float(known.sum())
