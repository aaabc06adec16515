"""Choice of the output that the labels refer to, and a check of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.data.store import LABELS
from edgepack.errors import ChainError
from edgepack.passes.distill.loss import Head
from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.distill.teacher import Teacher
from edgepack.passes.training.training_set import TrainingSet

BY_TEACHER = "alpha=1 learns from the teacher alone"


def choose_labelled_head(
    heads: Sequence[Head], data: TrainingSet, teacher: Teacher, options: DistillOptions
) -> Head | None:
    """Return the output that the labels refer to: the first of scores, of two classes, or of all.

    None if there are no labels, or if alpha = 1 ignores them. Raises ChainError distill-labels.
    """
    unlabelled = data.store.count - data.labelled
    if options.alpha == 0 and unlabelled:
        raise ChainError(
            "distill-labels",
            "samples without a label have no training target",
            why=f"alpha is 0, which ignores the teacher, and {unlabelled:,} of "
            f"{data.store.count:,} training samples have no label",
            hint=f"{BY_TEACHER}; or label all samples",
        )
    if not data.labelled or options.alpha == 1:
        return None
    # Class labels refer to scores, or else to an output of two classes. False sorts before True,
    # and of equal heads `min` returns the first: [values, binary, scores, scores] gives index 2.
    head = min(heads, key=lambda head: (not head.scores, not head.binary))
    members = next(data.batches(np.arange(data.store.count)))
    output = head.arrange(teacher.ask(data.feed(members))[head.index])
    labels = data.labels(members)
    if head.scores:
        fits = not labels.is_floating_point() and labels.shape == output.shape[:-1]
        requirement = f"a class for each of {list(output.shape[:-1])}, as a whole number"
    elif head.binary:
        fits = labels.numel() == output.numel()
        requirement = f"0 or 1 for each of {list(output.shape)}"
    else:
        fits = labels.is_floating_point() and labels.numel() == output.numel()
        requirement = f"a value for each of {list(output.shape)}, as floating point"
    if not fits:
        raise ChainError(
            "distill-labels",
            f"the labels do not fit the output {head.tensor.name}",
            why=f"they are {labels.dtype} {list(labels.shape)}; the output requires {requirement}",
            hint=BY_TEACHER,
        )
    if head.scores:
        _check_classes(head, data, int(output.shape[-1]))
    elif head.binary:
        _check_classes(head, data, 2)
    return head


def _check_classes(head: Head, data: TrainingSet, classes: int) -> None:
    """Raise ChainError distill-labels for a label outside the classes."""
    for members in data.batches(np.arange(data.store.count)):
        highest = np.nanmax(data.store.rows(LABELS, members), initial=-1)
        if highest >= classes:
            raise ChainError(
                "distill-labels",
                f"a label is outside the {classes} classes of {head.tensor.name}",
                why=f"the label is {highest:g}; classes count from 0",
                hint="-1 marks a sample without a label",
            )
