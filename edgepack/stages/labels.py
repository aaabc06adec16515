"""Decide what each output is, which output the labels are of, and whether they are this model's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgepack.errors import DataError, SpecError
from edgepack.runtime.parity.accuracy import (
    DECIDING,
    NONE,
    decisions,
    labelled_output,
    read_labels,
)
from edgepack.runtime.tensor import Tensor

# Bound on the probability of either error of the test for chance.
SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class OutputKind:
    """What an output is.

    Attributes:
        kind: one of `tensor.KINDS`.
        axis: of the classes, where it is scores.
        reason: why, where nobody stated it; "" where it was stated.
        by_labels: whether the labels told it.
    """

    kind: str
    axis: int = -1
    reason: str = ""
    by_labels: bool = False


@dataclass(frozen=True)
class Labels:
    """What becomes of the labels of the evaluation samples.

    Attributes:
        used: whether quality is judged by them.
        unused: why they are not, where there are any.
        chance: whether the original is right no more often than by guessing.
    """

    used: bool = False
    unused: str = ""
    chance: str = ""


def infer_kinds(
    survey: Mapping[str, Any], names: Sequence[str], stated: Sequence[tuple[str | None, int | None]]
) -> tuple[OutputKind, ...]:
    """Return what each output is: as stated, else as the labels and its shape tell.

    Args:
        survey: what `AnswerSurvey.to_json` gave.
        names: of the outputs.
        stated: per output, the kind and the class axis that the user or the source states.

    Raises SpecError `output-axis` where an output does not have the axis that was stated.
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
                hint="-1 is the last",
            )
        labels = survey["labels"]
        settled = _stated(facts, labels, kind, axis) if kind else _inferred(facts, labels, alone)
        last = settled.axis == rank - 1
        kinds.append(replace(settled, axis=-1) if last else settled)
    return tuple(kinds)


def _stated(
    facts: Mapping[str, Any], labels: Mapping[str, Any] | None, kind: str, axis: int | None
) -> OutputKind:
    if kind != "scores":
        return OutputKind(kind)
    if axis is None:
        found = _class_axis(facts, labels)
        axis = -1 if found is None else found
    if facts["shape"] and facts["shape"][axis] == 1:
        binary = _binary(facts, "it has one score, and the largest of one is no choice")
        return replace(binary, by_labels=False)
    return OutputKind(kind, axis)


def _inferred(
    facts: Mapping[str, Any], labels: Mapping[str, Any] | None, alone: bool
) -> OutputKind:
    shape, forms = facts["shape"], facts["forms"]
    is_float = facts["dtype"].startswith("float")
    if labels is not None and "values" in forms and labels["whole"] and not is_float:
        return OutputKind("classes", reason="the labels are integers of its shape", by_labels=True)
    if not is_float:
        return OutputKind("values")
    axis = _class_axis(facts, labels)
    if axis is not None:
        return OutputKind("scores", axis, "the labels are its classes", by_labels=True)
    if labels is not None and "values" in forms:
        several = len(shape) == 2 and shape[1] != 1
        if _are_binary(labels) and not several:
            return _binary(facts, "the labels of its values are 0 and 1")
        if not labels["whole"]:
            return OutputKind("values")
    classes = shape[1] if len(shape) == 2 else None
    if alone and classes is not None and classes > 1:
        return OutputKind("scores", reason="it is the only output, with one row for each sample")
    return OutputKind("values")


def _class_axis(facts: Mapping[str, Any], labels: Mapping[str, Any] | None) -> int | None:
    """Return the axis along which the labels count classes; None where they do not."""
    if labels is None:
        return None
    # Maps have their classes at axis 1, sequences at the last, where both would fit.
    order = (1, -1) if len(facts["shape"]) > 3 else (-1, 1)
    fitting = [
        axis
        for axis in order
        if f"one-hot:{axis}" in facts["forms"]
        or (labels["whole"] and f"classes:{axis}" in facts["forms"])
    ]
    highest = labels["maximum"]
    holding = [a for a in fitting if highest is None or highest < (facts["shape"][a] or np.inf)]
    return next(iter(holding or fitting), None)


def _are_binary(labels: Mapping[str, Any]) -> bool:
    low, high = labels["minimum"], labels["maximum"]
    return bool(labels["whole"]) and low is not None and low >= 0 and high <= 1


def _binary(facts: Mapping[str, Any], reason: str) -> OutputKind:
    low, high = facts["minimum"], facts["maximum"]
    if low is not None and low >= 0 and high <= 1:
        reason += ", and its values lie in 0..1"
        return OutputKind("probability", reason=reason, by_labels=True)
    return OutputKind("logit", reason=reason, by_labels=True)


@dataclass
class Grade:
    """How often one output of the original is right, and how often guessing would be.

    Attributes:
        samples: how many have a label.
        right: decisions that are as labelled.
        total: decisions that have a label.
        classes: how many there are; 0 where the output does not tell.
    """

    samples: int = 0
    right: int = 0
    total: int = 0
    classes: int = 0
    chosen: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)

    def add(self, answer: np.ndarray, labels: np.ndarray, output: OutputKind, count: int) -> None:
        """Take a batch of `count` samples. Raises InputError as `read_labels` does."""
        expected = read_labels(labels, answer.shape, output.kind, output.axis)
        chosen = decisions(answer, output.kind, output.axis)
        if chosen is None:
            return
        counted = expected != NONE
        self.samples += count
        self.total += int(np.count_nonzero(counted))
        self.right += int(np.count_nonzero((chosen == expected) & counted))
        for counter, values in ((self.chosen, chosen), (self.labelled, expected)):
            classes, numbers = np.unique(values[counted], return_counts=True)
            counter.update(dict(zip(classes.tolist(), numbers.tolist(), strict=True)))
        if output.kind != "classes":
            self.classes = answer.shape[output.axis] if output.kind == "scores" else 2

    def guessing(self) -> float:
        """The share that guessing has right: uniformly, or in the proportions of the answers.

        The second is Cohen's (1960) expected agreement, sum over classes c of
        P(answer = c) P(label = c): a model that always answers the commonest class is right as
        often as that. Where all labels are of one class it tells nothing, and is left out.
        """
        classes = self.classes or len({*self.chosen, *self.labelled})
        uniform = 1 / max(classes, 2)
        if len(self.labelled) < 2:
            return uniform
        both = sum(self.chosen[label] * number for label, number in self.labelled.items())
        return max(uniform, both / self.total**2)

    def is_chance(self) -> bool:
        """Tell whether guessing explains the answers, and a model of any use does not.

        Two one-sided binomial tests on the number of right samples, each at SIGNIFICANCE:
        guessing, with probability p, is right as often or oftener; and a model halfway between
        guessing and perfection, with (1 + p) / 2, is not right as seldom. The second keeps small
        sets from refusing a model by bad luck. Decisions of one sample (pixels, tokens) depend
        on each other, so that samples are counted, each by its share. An original that is right
        on no label at all is one at chance however few there are: its accuracy bounds nothing.
        """
        if not self.total:
            return False
        if not self.right:
            return True
        number = min(self.samples, self.total)
        right = round(number * self.right / self.total)
        guess = min(self.guessing(), 1.0)
        lucky = at_least(right, number, guess)
        unlucky = 1.0 - at_least(right + 1, number, (1 + guess) / 2)
        return lucky > SIGNIFICANCE and unlucky < SIGNIFICANCE

    def describe(self) -> str:
        """The two shares in words."""
        return (
            f"right on {100 * self.right / self.total:.1f} % of {self.total:,} labels; "
            f"guessing is on {100 * self.guessing():.1f} %"
        )


def at_least(successes: int, trials: int, share: float) -> float:
    """Return the probability of so many successes or more in independent trials."""
    if successes <= 0 or share >= 1:
        return 1.0
    if successes > trials or share <= 0:
        return 0.0
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(successes, trials + 1)
    )  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


Answered = Callable[[], Iterator[tuple[Sequence[np.ndarray], np.ndarray, int]]]


def judge_labels(
    kinds: tuple[OutputKind, ...],
    names: Sequence[str],
    survey: Mapping[str, Any],
    answered: Answered,
    allow_chance: bool,
) -> tuple[tuple[OutputKind, ...], Labels]:
    """Return the outputs' kinds, the one that the labels are of chosen, and what becomes of them.

    Args:
        kinds: what `infer_kinds` gave.
        names: of the outputs.
        survey: what `AnswerSurvey.to_json` gave.
        answered: yields answers, labels and number of samples, batch by batch.
        allow_chance: go on where the original is right no more often than by guessing.

    Raises DataError `original-chance`, and InputError as `read_labels` does.
    """
    if survey["labels"] is None:
        return kinds, Labels()
    unused = _unused(kinds, names, survey)
    if unused:
        return kinds, Labels(unused=unused)
    candidates = _candidates(kinds, names, answered)
    grades = {index: Grade() for index in candidates}
    for answers, labels, count in answered():
        for index, grade in grades.items():
            grade.add(answers[index], labels, kinds[index], count)
    index = next((i for i in candidates if not grades[i].is_chance()), candidates[0])
    kinds = tuple(
        OutputKind("values") if kind.by_labels and i != index else kind
        for i, kind in enumerate(kinds)
    )
    grade = grades[index]
    if not grade.total:
        return kinds, Labels(unused=f"none of them names a class of {names[index]}")
    if not grade.is_chance():
        return kinds, Labels(used=True)
    if not allow_chance:
        raise DataError(
            "original-chance",
            f"the original's output {names[index]} is right no more often than by guessing",
            why=grade.describe(),
            hint="are these the labels of this model and of these samples, in its order of "
            "classes? A manifest says which output they are of: [[outputs]] kind\n"
            "--allow-chance judges by the agreement with the original instead",
        )
    return kinds, Labels(
        used=True,
        chance=f"the original's output {names[index]} is right no more often than by guessing: "
        f"{grade.describe()}; its labels prove nothing",
    )


def _unused(kinds: Sequence[OutputKind], names: Sequence[str], survey: Mapping[str, Any]) -> str:
    """Return why labels cannot be used; "" where they can, or are plainly wrong."""
    labels = survey["labels"]
    what = f"they are {labels['dtype']} {labels['shape']} for each sample"
    if labels["minimum"] is not None:
        what += f", from {labels['minimum']:g} to {labels['maximum']:g}"
    if not any(kind.kind in DECIDING for kind in kinds):
        shapes = ", ".join(
            f"{name} {facts['dtype']} {facts['shape'][1:]}"
            for name, facts in zip(names, survey["outputs"], strict=True)
        )
        return (
            f"{what}, and no output is known to decide between classes ({shapes}); a manifest "
            'can state that one is: [[outputs]] kind = "scores", "logit" or "probability"'
        )
    first = next(i for i, kind in enumerate(kinds) if kind.kind in DECIDING)
    forms = survey["outputs"][first]["forms"]
    guessed = kinds[first].kind == "scores" and bool(kinds[first].reason)
    if guessed and _are_binary(labels) and "values" in forms and not kinds[first].by_labels:
        return (
            f"they name several classes for a sample, or none; a manifest that states "
            f'kind = "logit" or "probability" for {names[first]} judges each class by itself'
        )
    return ""


def _candidates(kinds: Sequence[OutputKind], names: Sequence[str], answered: Answered) -> list[int]:
    """Return the outputs that the labels may be of, the likeliest first."""
    guessed = [i for i, kind in enumerate(kinds) if kind.by_labels]
    if not any(kind.kind in DECIDING and not kind.by_labels for kind in kinds):
        return sorted(guessed, key=lambda i: DECIDING.index(kinds[i].kind))
    answers, labels, _ = next(answered())
    tensors = [
        Tensor(name, "", (), "values" if kind.by_labels else kind.kind, kind.axis)
        for name, kind in zip(names, kinds, strict=True)
    ]
    index = labelled_output(tensors, [answer.shape for answer in answers], labels.shape)
    return [0 if index is None else index]
