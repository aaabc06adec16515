"""Checks that the classes of the samples are those of the model, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgepack.context import OutputKind
from edgepack.context.answers import AnswerBatch
from edgepack.errors import DataError
from edgepack.listing import join_names
from edgepack.runtime.parity.accuracy import decisions
from edgepack.stages.answers import Survey

# Samples of a class that show which index the model has for it, and the share that agrees.
_FEWEST, _SHARE = 5, 0.5
# Samples of permuted classes that are answered by the permutation, for each that is not.
_RATIO = 2
# Names of classes in one line, and in the order that is suggested.
_SHOWN, _SUGGESTED = 5, 100


def check_class_count(
    survey: Survey,
    names: Sequence[str],
    kinds: Sequence[OutputKind],
    class_names: Sequence[str],
) -> None:
    """Refuse names of classes that are fewer or more than the model's classes.

    Args:
        survey: the result of `AnswerSurvey.to_json`.
        names: of the outputs.
        kinds: of the outputs.
        class_names: of the samples; empty if they are not known.

    Raises DataError `class-count`.
    """
    # Labels of boxes or maps name the classes of each part, whose number the outputs do not show.
    labels = survey["labels"]
    if labels is None or not class_names or labels["shape"]:
        return
    sizes: dict[str, int] = {}
    for name, facts, output in zip(names, survey["outputs"], kinds, strict=True):
        size = facts["shape"][output.axis] if output.kind == "scores" else None
        if size is not None:
            sizes[name] = size
    if not sizes or len(class_names) in sizes.values():
        return
    counts = ", ".join(f"{name} has {size}" for name, size in sizes.items())
    raise DataError(
        "class-count",
        f"the samples have {len(class_names)} classes, and the model has others",
        why=f"{counts}; the samples: {join_names(class_names, _SHOWN)}",
        hint="list all classes of the model, one on each line in its order: --classes FILE\n"
        "if the folders are not classes, say so in the manifest: [classes] folders = false",
    )


def check_class_order(
    names: Sequence[str],
    kinds: Sequence[OutputKind],
    class_names: Sequence[str],
    batches: Callable[[], Iterator[AnswerBatch]],
) -> None:
    """Refuse labels that count the model's classes in another order.

    An original that answers "bag" for most boots and "boot" for most bags is not poor: its classes
    are in another order than the names of the data sort them. Half of the classes may have their
    index by chance, so that the accuracy alone does not show it.

    Args:
        names: of the outputs.
        kinds: of the outputs.
        class_names: of the samples; empty if they are not known.
        batches: yields the original's answers to all evaluation samples.

    Raises DataError `class-order`.
    """
    for index, output in enumerate(kinds):
        if output.kind != "scores" or not class_names:
            continue
        counts = _count_answers(batches, index, output, len(class_names))
        if counts is None:
            continue
        order = _find_order(counts)
        if order:
            raise _make_order_error(names[index], class_names, counts, order)


def _count_answers(
    batches: Callable[[], Iterator[AnswerBatch]], index: int, output: OutputKind, number: int
) -> np.ndarray | None:
    """Return the number of samples by label and answer; None without one class per sample."""
    counts = np.zeros((number, number), np.int64)
    for batch in batches():
        labels = batch.labels
        if labels is None or labels.dtype.kind not in "iu" or labels.ndim != 1:
            return None
        answers = decisions(batch.answers[index], output.kind, output.axis)
        if answers is None or answers.shape != labels.shape:
            return None
        valid = (labels >= 0) & (labels < number) & (answers >= 0) & (answers < number)
        np.add.at(counts, (labels[valid], answers[valid]), 1)
    return counts


def _find_order(counts: np.ndarray) -> dict[int, int]:
    """Return the answer to most samples of each class that is not its own; empty for one order.

    The answers must be a permutation of these classes, as confusions of a poor model hardly are:
    boots answered as bags, and bags as boots.
    """
    order: dict[int, int] = {}
    for label, row in enumerate(counts):
        answer, total = int(row.argmax()), int(row.sum())
        if total >= _FEWEST and answer != label and row[answer] >= _SHARE * total:
            order[label] = answer
    if len(order) < 2 or set(order.values()) != set(order):
        return {}
    # Of two classes at chance, both may be answered by the other a little more often.
    permuted = sum(int(counts[label, answer]) for label, answer in order.items())
    own = sum(int(counts[label, label]) for label in order)
    return order if permuted >= _RATIO * own else {}


def _make_order_error(
    output: str, class_names: Sequence[str], counts: np.ndarray, order: dict[int, int]
) -> DataError:
    label, answer = next(iter(order.items()))
    names = list(class_names)
    for data, model in order.items():
        names[model] = class_names[data]
    return DataError(
        "class-order",
        f"the samples count the classes of {output!r} in another order than the model",
        why=f"{counts[label, answer]} of {counts[label].sum()} samples of {class_names[label]!r}, "
        f"class {label}, are answered with class {answer}; "
        f"{len(order)} of {len(class_names)} classes are permuted",
        hint="state the names in the model's order, one on each line: --classes FILE\n"
        f"the answers suggest: {join_names(names, _SUGGESTED)}\n"
        "--allow-chance builds with these labels",
    )
