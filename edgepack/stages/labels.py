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
from edgepack.stages.answers import TEXT, LabelFacts, OutputFacts, Survey

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
    # With several outputs, the shape of one does not show that it is the one that decides.
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
        axis = _find_class_axis(facts, labels)
    # Classes are along the last axis unless the labels show another.
    if axis is None:
        axis = -1
    # A binary classifier with one score per sample decides by its sign, or by 0.5.
    if facts["shape"] and facts["shape"][axis] == 1:
        binary = _choose_binary_kind(facts, "it has a single score")
        return replace(binary, by_labels=False)
    return OutputKind(kind, axis)


def _infer_kind(facts: OutputFacts, labels: LabelFacts | None, alone: bool) -> OutputKind:
    """Infer a kind from the labels, or from the shape of the model's only output.

    Labels of shape (N,) make scores (N, 10) a classifier, 0 and 1 of the shape of a float output
    make it binary, and integers of the shape of an integer output make it classes. Without
    labels, only a single output of shape (N, C) is taken for scores.
    """
    shape, forms = facts["shape"], facts["forms"]
    # Integer outputs are decisions already, as of an argmax in the graph.
    is_float = facts["dtype"].startswith("float")
    if labels is not None and "values" in forms and labels["whole"] and not is_float:
        reason = "the labels are integers of the same shape"
        return OutputKind("classes", reason=reason, by_labels=True)
    if not is_float:
        return OutputKind("values")
    axis = _find_class_axis(facts, labels)
    if axis is not None:
        return OutputKind("scores", axis, "the labels are its classes", by_labels=True)
    if labels is not None and "values" in forms:
        # Zeros and ones for the columns of (N, 20) may be classes or several decisions; the user
        # has to say which.
        several = len(shape) == 2 and shape[1] != 1
        if _are_binary(labels) and not several:
            return _choose_binary_kind(facts, "the labels of its values are 0 and 1")
        if not labels["whole"]:
            return OutputKind("values")
    if alone and len(shape) == 2 and shape[1] is not None and shape[1] > 1:
        return OutputKind("scores", reason="it is the only output, with one row for each sample")
    return OutputKind("values")


def _find_class_axis(facts: OutputFacts, labels: LabelFacts | None) -> int | None:
    """Return the axis of the classes that the labels fit; None for none."""
    if labels is None:
        return None
    # If both axes fit, maps have their classes at axis 1, and sequences at the last.
    order = (-1, 1)
    if len(facts["shape"]) > 3:
        order = (1, -1)
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


def _choose_binary_kind(facts: OutputFacts, reason: str) -> OutputKind:
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
        # 90 and 10 answers, and 80 and 20 labels, of 100: (90 x 80 + 10 x 20) / 100^2.
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
        # 8 samples of 100 tokens, 640 of the 800 labels right, count as 6 of 8 samples.
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
    """Return the probability of at least this many successes in independent trials.

    The sum over k >= successes of C(trials, k) share^k (1 - share)^(trials - k); 10 of 10 trials
    at 0.5 give 2^-10.
    """
    if successes <= 0 or share >= 1:
        return 1.0
    if successes > trials or share <= 0:
        return 0.0
    # Logarithms, since binomial coefficients of thousands of samples overflow a float.
    terms = []
    for k in range(successes, trials + 1):
        log = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        log += k * math.log(share)
        log += (trials - k) * math.log1p(-share)
        terms.append(math.exp(log))
    return min(1.0, math.fsum(terms))


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
    unused = _explain_unused(kinds, names, survey["outputs"], survey["labels"])
    if unused:
        return kinds, Labels(unused=unused)
    candidates = _list_candidates(kinds, names, batches)
    index, grade = _find_labelled(candidates, kinds, batches)
    kinds = _drop_inferred(kinds, index)
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
            "--classes FILE names the classes in the model's order, where the data sort them\n"
            "--allow-chance judges by the agreement with the original instead",
        )
    return kinds, Labels(
        used=True,
        chance=f"the original's output {names[index]!r} is right no more often than by guessing: "
        f"{grade.describe()}; its labels prove nothing",
    )


def _find_labelled(
    candidates: Sequence[int],
    kinds: Sequence[OutputKind],
    batches: Callable[[], Iterator[AnswerBatch]],
) -> tuple[int, Grade]:
    """Return the output that the labels belong to, with its accuracy.

    The same labels may fit several heads of a model. They belong to the first that gets them
    right: with an auxiliary head at 10 % of ten classes, and the main one at 93 %, to the latter.
    """
    grades = {index: Grade() for index in candidates}
    for batch in batches():
        if batch.labels is None:
            continue
        for index, grade in grades.items():
            grade.add(batch.answers[index], batch.labels, kinds[index], batch.count)
    for index, grade in grades.items():
        if not grade.is_chance():
            return index, grade
    return candidates[0], grades[candidates[0]]


def _drop_inferred(kinds: Sequence[OutputKind], labelled: int) -> tuple[OutputKind, ...]:
    """Return the kinds; one inferred from the labels holds only for the output they belong to."""
    matched = list(kinds)
    for index, kind in enumerate(kinds):
        if kind.by_labels and index != labelled:
            matched[index] = OutputKind("values")
    return tuple(matched)


def _explain_unused(
    kinds: Sequence[OutputKind],
    names: Sequence[str],
    outputs: Sequence[OutputFacts],
    labels: LabelFacts,
) -> str:
    """Return the reason for not using the labels; "" if they fit, or are plainly wrong."""
    if labels["dtype"] == TEXT:
        return (
            "they are texts, which no output holds; a metric such as cer judges them: --metric cer"
        )
    summary = f"they are {labels['dtype']} {labels['shape']} for each sample"
    if labels["minimum"] is not None:
        summary += f", from {labels['minimum']:g} to {labels['maximum']:g}"
    deciding = [index for index, kind in enumerate(kinds) if kind.kind in DECIDING]
    if not deciding:
        shapes = ", ".join(map(_describe_output, names, outputs))
        return (
            f"{summary}, and no output is known to decide between classes ({shapes}); a manifest "
            'can name one that does: [[outputs]] kind = "scores", "logit" or "probability"'
        )
    # Zeros and ones of the shape of guessed scores are labels of several classes at once: for
    # scores of 20 classes, [0, 1, 1, 0, ...] rather than one class.
    first = deciding[0]
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


def _list_candidates(
    kinds: Sequence[OutputKind], names: Sequence[str], batches: Callable[[], Iterator[AnswerBatch]]
) -> list[int]:
    """Return the outputs that the labels may belong to, the likeliest first."""
    # Only outputs whose kind does not come from the labels: if one of them decides, the labels
    # belong to it, as the loader's `verify` will assume.
    inferred: list[int] = []
    tensors: list[Tensor] = []
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind.by_labels:
            inferred.append(index)
            kind = OutputKind("values", kind.axis)
        tensors.append(Tensor(name, "", (), kind.kind, kind.axis))
    if not any(tensor.kind in DECIDING for tensor in tensors):
        return sorted(inferred, key=lambda index: DECIDING.index(kinds[index].kind))
    first = next(batches())
    if first.labels is None:
        return [0]
    shapes = [answer.shape for answer in first.answers]
    return [labelled_output(tensors, shapes, first.labels.shape) or 0]
