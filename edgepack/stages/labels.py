"""Infer the kind of each output, match the labels to an output, and check that they fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgepack.context import Labels, OutputKind
from edgepack.context.answers import AnswerBatch
from edgepack.errors import DataError, SpecError
from edgepack.runtime.parity.accuracy import (
    DECIDING,
    NONE,
    decisions,
    labelled_output,
    read_labels,
)
from edgepack.runtime.tensor import Tensor
from edgepack.stages.answers import LabelFacts, OutputFacts, Survey

# Bound on the probability of either error of the test for chance, see `Grade.is_chance`.
SIGNIFICANCE = 0.01


def infer_kinds(
    survey: Survey, names: Sequence[str], stated: Sequence[tuple[str | None, int | None]]
) -> tuple[OutputKind, ...]:
    """Return the kind of each output: as stated, else inferred from the labels and its shape.

    Args:
        survey: the result of `AnswerSurvey.to_json`.
        names: of the outputs.
        stated: per output, the kind and the class axis from the user or the source; None for none.

    Raises SpecError `output-axis` if an output does not have the stated axis.
    """
    alone = len(names) == 1
    kinds = []
    for name, facts, (kind, axis) in zip(names, survey["outputs"], stated, strict=True):
        rank = len(facts["shape"])
        if axis is not None and not -1 <= axis < rank:
            raise SpecError(
                "output-axis",
                f"the output {name} has no axis {axis}",
                why=f"it has {rank} axes, counted from 0",
                hint="-1 is the last one",
            )
        labels = survey["labels"]
        if kind:
            output = _resolve_kind(facts, labels, kind, axis)
        else:
            output = _infer_kind(facts, labels, alone)
        # The last axis has one spelling, -1.
        if output.axis == rank - 1:
            output = replace(output, axis=-1)
        kinds.append(output)
    return tuple(kinds)


def _resolve_kind(
    facts: OutputFacts, labels: LabelFacts | None, kind: str, axis: int | None
) -> OutputKind:
    if kind != "scores":
        return OutputKind(kind)
    if axis is None:
        class_axis = _class_axis(facts, labels)
        axis = -1 if class_axis is None else class_axis
    # A binary classifier with one score per sample decides by its sign, or by 0.5.
    if facts["shape"] and facts["shape"][axis] == 1:
        binary = _binary_kind(facts, "it has a single score")
        return replace(binary, by_labels=False)
    return OutputKind(kind, axis)


def _infer_kind(facts: OutputFacts, labels: LabelFacts | None, alone: bool) -> OutputKind:
    """Infer a kind from the labels, or from the shape of the model's only output.

    Labels of shape (N,) make scores (N, 10) a classifier, 0 and 1 of the shape of a float output
    make it binary, and integers of the shape of an integer output make it classes. Without
    labels, only a single output of shape (N, C) is taken for scores.
    """
    shape, forms = facts["shape"], facts["forms"]
    is_float = facts["dtype"].startswith("float")
    if labels is not None and "values" in forms and labels["whole"] and not is_float:
        reason = "the labels are integers of the same shape"
        return OutputKind("classes", reason=reason, by_labels=True)
    if not is_float:
        return OutputKind("values")
    axis = _class_axis(facts, labels)
    if axis is not None:
        return OutputKind("scores", axis, "the labels are its classes", by_labels=True)
    if labels is not None and "values" in forms:
        several = len(shape) == 2 and shape[1] != 1
        if _are_binary(labels) and not several:
            return _binary_kind(facts, "the labels of its values are 0 and 1")
        if not labels["whole"]:
            return OutputKind("values")
    if alone and len(shape) == 2 and shape[1] is not None and shape[1] > 1:
        return OutputKind("scores", reason="it is the only output, with one row for each sample")
    return OutputKind("values")


def _class_axis(facts: OutputFacts, labels: LabelFacts | None) -> int | None:
    """Return the axis of the classes that the labels fit; None for none."""
    if labels is None:
        return None
    # If both axes fit, maps have their classes at axis 1, and sequences at the last.
    order = (1, -1) if len(facts["shape"]) > 3 else (-1, 1)
    forms, highest = facts["forms"], labels["maximum"]
    first_fit = None
    for axis in order:
        names_classes = labels["whole"] and f"classes:{axis}" in forms
        if f"one-hot:{axis}" not in forms and not names_classes:
            continue
        # Labels up to 9 need an axis of at least 10 classes; None is an axis of any size.
        if highest is None or highest < (facts["shape"][axis] or np.inf):
            return axis
        if first_fit is None:
            first_fit = axis
    return first_fit


def _are_binary(labels: LabelFacts) -> bool:
    low, high = labels["minimum"], labels["maximum"]
    if low is None or high is None:
        return False
    return labels["whole"] and low >= 0 and high <= 1


def _binary_kind(facts: OutputFacts, reason: str) -> OutputKind:
    low, high = facts["minimum"], facts["maximum"]
    if low is not None and high is not None and low >= 0 and high <= 1:
        reason += ", and its values lie in 0..1"
        return OutputKind("probability", reason=reason, by_labels=True)
    return OutputKind("logit", reason=reason, by_labels=True)


@dataclass
class Grade:
    """Accuracy of one output of the original, and the accuracy of guessing.

    Attributes:
        samples: number of samples with labels.
        right: decisions equal to their label.
        total: decisions with a label.
        classes: number of classes; 0 for unknown.
    """

    samples: int = 0
    right: int = 0
    total: int = 0
    classes: int = 0
    decided: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)

    def add(self, answer: np.ndarray, labels: np.ndarray, output: OutputKind, count: int) -> None:
        """Add a batch of `count` samples. Raises InputError as `read_labels` does."""
        expected = read_labels(labels, answer.shape, output.kind, output.axis)
        decided = decisions(answer, output.kind, output.axis)
        if decided is None:
            return
        counted = expected != NONE
        self.samples += count
        self.total += int(np.count_nonzero(counted))
        self.right += int(np.count_nonzero((decided == expected) & counted))
        for counter, values in ((self.decided, decided), (self.labelled, expected)):
            classes, numbers = np.unique(values[counted], return_counts=True)
            counter.update(dict(zip(classes.tolist(), numbers.tolist(), strict=True)))
        # An output of kind "classes" does not reveal their number.
        if output.kind == "scores":
            self.classes = answer.shape[output.axis]
        elif output.kind != "classes":
            self.classes = 2

    def guessing(self) -> float:
        """Return the accuracy of guessing: uniformly, or in the proportions of the answers.

        The second is Cohen's (1960) expected agreement, sum over classes c of
        P(answer = c) P(label = c): the accuracy of a model that always answers the commonest
        class. It is omitted if all labels are of one class, since it is then meaningless.

        With two classes, 90 % of the answers and 80 % of the labels 0, guessing is right on
        0.9 x 0.8 + 0.1 x 0.2 = 74 %.
        """
        classes = self.classes or len({*self.decided, *self.labelled})
        # Ten classes: 10 %. One class, or an unknown number, counts as two.
        uniform = 1 / max(classes, 2)
        if len(self.labelled) < 2:
            return uniform
        both = sum(self.decided[label] * number for label, number in self.labelled.items())
        return max(uniform, both / self.total**2)

    def is_chance(self) -> bool:
        """Return True if guessing explains the answers, and a useful model does not.

        Two one-sided binomial tests on the number of right samples, each at SIGNIFICANCE:
        guessing, with probability p, is right at least as often; and a model halfway between
        guessing and perfection, with (1 + p) / 2, is unlikely to be right as rarely. The second
        protects models on small sets from bad luck. Decisions of one sample (pixels, tokens)
        depend on each other, so samples are counted, each by its share of right decisions. An
        original that is right on no label is at chance, however few there are: its accuracy
        bounds nothing.
        """
        if not self.total:
            return False
        if not self.right:
            return True
        number = min(self.samples, self.total)
        right = round(number * self.right / self.total)
        guess = min(self.guessing(), 1.0)
        lucky = binomial_tail(right, number, guess)
        unlucky = 1.0 - binomial_tail(right + 1, number, (1 + guess) / 2)
        return lucky > SIGNIFICANCE and unlucky < SIGNIFICANCE

    def describe(self) -> str:
        """Return the two accuracies: "right on 9.8 % of 512 labels; guessing is on 10.0 %"."""
        return (
            f"right on {100 * self.right / self.total:.1f} % of {self.total:,} labels; "
            f"guessing is on {100 * self.guessing():.1f} %"
        )


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """Return the probability of at least this many successes in independent trials."""
    if successes <= 0 or share >= 1:
        return 1.0
    if successes > trials or share <= 0:
        return 0.0
    # Logarithms, since binomial coefficients of thousands of samples overflow a float.
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(successes, trials + 1)
    )  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def judge_labels(
    kinds: tuple[OutputKind, ...],
    names: Sequence[str],
    survey: Survey,
    batches: Callable[[], Iterator[AnswerBatch]],
    allow_chance: bool,
) -> tuple[tuple[OutputKind, ...], Labels]:
    """Match the labels to one output; return the outputs' kinds, and the use of the labels.

    Args:
        kinds: the result of `infer_kinds`.
        names: of the outputs.
        survey: the result of `AnswerSurvey.to_json`.
        batches: yields the answers to all evaluation samples.
        allow_chance: accept an original that is right no more often than by guessing.

    Raises DataError `original-chance`, and InputError as `read_labels` does.
    """
    if survey["labels"] is None:
        return kinds, Labels()
    unused = _unused(kinds, names, survey["outputs"], survey["labels"])
    if unused:
        return kinds, Labels(unused=unused)
    # The same labels may fit several heads of a model; their accuracy then shows the labelled one.
    candidates = _candidates(kinds, names, batches)
    grades = {index: Grade() for index in candidates}
    for batch in batches():
        if batch.labels is None:
            continue
        for index, grade in grades.items():
            grade.add(batch.answers[index], batch.labels, kinds[index], batch.count)
    # Of several outputs that the labels fit, they belong to one that gets them right.
    index = next((i for i in candidates if not grades[i].is_chance()), candidates[0])
    # A kind inferred from the labels holds only for the output that they belong to.
    matched = list(kinds)
    for i, kind in enumerate(kinds):
        if kind.by_labels and i != index:
            matched[i] = OutputKind("values")
    kinds = tuple(matched)
    grade = grades[index]
    if not grade.total:
        return kinds, Labels(unused=f"none of them names a class of {names[index]}")
    if not grade.is_chance():
        return kinds, Labels(used=True)
    if not allow_chance:
        raise DataError(
            "original-chance",
            f"the original's output {names[index]!r} is right no more often than by guessing",
            why=grade.describe(),
            hint="check that the labels belong to this model and these samples, in its order of "
            "classes; a manifest can name the output that they judge: [[outputs]] kind\n"
            "--allow-chance judges by the agreement with the original instead",
        )
    return kinds, Labels(
        used=True,
        chance=f"the original's output {names[index]!r} is right no more often than by guessing: "
        f"{grade.describe()}; its labels prove nothing",
    )


def _unused(
    kinds: Sequence[OutputKind],
    names: Sequence[str],
    outputs: Sequence[OutputFacts],
    labels: LabelFacts,
) -> str:
    """Return the reason for not using the labels; "" if they fit, or are plainly wrong."""
    summary = f"they are {labels['dtype']} {labels['shape']} for each sample"
    if labels["minimum"] is not None:
        summary += f", from {labels['minimum']:g} to {labels['maximum']:g}"
    if not any(kind.kind in DECIDING for kind in kinds):
        shapes = ", ".join(map(_describe_output, names, outputs))
        return (
            f"{summary}, and no output is known to decide between classes ({shapes}); a manifest "
            'can name one that does: [[outputs]] kind = "scores", "logit" or "probability"'
        )
    first = next(i for i, kind in enumerate(kinds) if kind.kind in DECIDING)
    forms = outputs[first]["forms"]
    is_guess = kinds[first].kind == "scores" and bool(kinds[first].reason)
    if is_guess and _are_binary(labels) and "values" in forms and not kinds[first].by_labels:
        return (
            f"they name several classes for a sample, or none; a manifest with "
            f'kind = "logit" or "probability" for {names[first]} judges each class separately'
        )
    return ""


def _describe_output(name: str, facts: OutputFacts) -> str:
    """Return the type and the shape of one sample's answer: "logits float32 [1000]"."""
    return f"{name} {facts['dtype']} {facts['shape'][1:]}"


def _candidates(
    kinds: Sequence[OutputKind], names: Sequence[str], batches: Callable[[], Iterator[AnswerBatch]]
) -> list[int]:
    """Return the outputs that the labels may belong to, the likeliest first."""
    inferred = [i for i, kind in enumerate(kinds) if kind.by_labels]
    if not any(kind.kind in DECIDING and not kind.by_labels for kind in kinds):
        return sorted(inferred, key=lambda i: DECIDING.index(kinds[i].kind))
    first = next(batches())
    tensors = [
        Tensor(name, "", (), "values" if kind.by_labels else kind.kind, kind.axis)
        for name, kind in zip(names, kinds, strict=True)
    ]
    if first.labels is None:
        return [0]
    shapes = [answer.shape for answer in first.answers]
    index = labelled_output(tensors, shapes, first.labels.shape)
    return [index or 0]
