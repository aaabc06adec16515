"""Which output the labels are of, and whether they fit it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.chain.distill.loss import Head
from edgepack.chain.distill.options import DistillOptions
from edgepack.chain.distill.teacher import Teacher
from edgepack.chain.training.data import TrainingSet
from edgepack.data.store import LABELS
from edgepack.errors import ChainError

BY_TEACHER = "alpha=1 learns from the teacher alone"


def labelled_head(
    heads: Sequence[Head], data: TrainingSet, teacher: Teacher, options: DistillOptions
) -> Head | None:
    """Return the output that the labels are of: the first of scores, of two classes, or of all.

    None where there are no labels, or where they do not count. Raises ChainError distill-labels.
    """
    without = data.store.count - data.labelled
    if options.alpha == 0 and without:
        raise ChainError(
            "distill-labels",
            "samples without a label have nothing to teach",
            why=f"alpha is 0, which leaves the teacher out, and {without:,} of "
            f"{data.store.count:,} training samples have no label",
            hint=f"{BY_TEACHER}; or give samples that all have a label",
        )
    if not data.labelled or options.alpha == 1:
        return None
    deciding = [head for head in heads if head.scores] + [head for head in heads if head.binary]
    head = next(iter(deciding or heads))
    members = next(data.batches(np.arange(data.store.count)))
    output = head.arrange(teacher.ask(data.feed(members))[head.index])
    labels = data.labels(members)
    if head.scores:
        fits = not labels.is_floating_point() and labels.shape == output.shape[:-1]
        wanted = f"a class for each of {list(output.shape[:-1])}, as a whole number"
    elif head.binary:
        fits = labels.numel() == output.numel()
        wanted = f"0 or 1 for each of {list(output.shape)}"
    else:
        fits = labels.is_floating_point() and labels.numel() == output.numel()
        wanted = f"a value for each of {list(output.shape)}, as floating point"
    if not fits:
        raise ChainError(
            "distill-labels",
            f"the labels do not fit the output {head.tensor.name}",
            why=f"they are {labels.dtype} {list(labels.shape)}; it takes {wanted}",
            hint=BY_TEACHER,
        )
    if head.scores or head.binary:
        _check_classes(head, data, int(output.shape[-1]) if head.scores else 2)
    return head


def _check_classes(head: Head, data: TrainingSet, classes: int) -> None:
    for members in data.batches(np.arange(data.store.count)):
        highest = np.nanmax(data.store.rows(LABELS, members), initial=-1)
        if highest >= classes:
            raise ChainError(
                "distill-labels",
                f"a label is none of the {classes} classes of {head.tensor.name}",
                why=f"there is a label {highest:g}; classes count from 0",
                hint="-1 marks a sample without a label",
            )
