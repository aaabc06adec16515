"""Losses between a student and its teacher, and between a student and the labels.

For each sample, over all outputs:

    soft = T^2 KL(softmax(t / T) || softmax(s / T))       of "scores" (Hinton et al., 2015)
           + (mean s - mean t)^2 / 2
    soft = mean (s - t)^2 / variance of the teacher's     of "values"
    hard = cross entropy, binary of a "logit" or "probability",
           or (s - label)^2 / variance of "values"        if the sample has a label

    loss = alpha soft + (1 - alpha) hard,                 soft alone without a label

A softmax ignores a constant added to all scores: without the second term the student's scores could
have any offset, and fail the SNR gate although its decisions are right. For large T the two terms
together tend to half the mean squared error of the scores. Outputs that are probabilities have no
such offset.

The loss of scores at several positions (tokens, pixels) is their mean. Outputs that already are
probabilities (non-negative, sum 1) are converted to logits by their logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.training.training_set import has_label
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    import torch

# Smallest logit: masked classes have minus infinity, and the difference of two of them is NaN.
FLOOR = -1e4


@dataclass(frozen=True)
class Head:
    """Output to learn.

    Attributes:
        index: its position among the outputs.
        tensor: its name and kind.
        probabilities: True if the network applies a softmax to its scores.
        scale: variance of the teacher's values; 1 for scores.
    """

    index: int
    tensor: Tensor
    probabilities: bool
    scale: float

    @property
    def scores(self) -> bool:
        """Return True for class scores."""
        return self.tensor.kind == "scores"

    @property
    def binary(self) -> bool:
        """Return True if each value decides between two classes."""
        return self.tensor.kind in ("logit", "probability")

    def arrange(self, output: torch.Tensor) -> torch.Tensor:
        """Return this output of a network in float32, the classes of scores along the last axis."""
        values = output.float()
        if self.scores:
            values = values.movedim(self.tensor.axis, -1)
        return values


def compute_soft_loss(
    heads: Sequence[Head],
    student: Sequence[torch.Tensor],
    teacher: Mapping[int, torch.Tensor],
    count: int,
    options: DistillOptions,
) -> torch.Tensor:
    """Return the soft loss of each of `count` samples: a tensor [count]."""
    # Each output's loss is relative to its own scale, so they add up without weights.
    total: torch.Tensor | float = 0.0
    for head in heads:
        ours, theirs = head.arrange(student[head.index]), head.arrange(teacher[head.index])
        if head.scores:
            total = total + _compute_divergence(head, ours, theirs, count, options.temperature)
            continue
        total = total + _average((ours - theirs).square() / head.scale, count)
        if options.cosine:
            total = total + options.cosine * measure_cosine_distance(ours, theirs, count)
    return total


def _compute_divergence(
    head: Head, ours: torch.Tensor, theirs: torch.Tensor, count: int, temperature: float
) -> torch.Tensor:
    """Return the soft loss of scores per sample: the divergence, and the offset of logits."""
    from torch.nn import functional as F

    # A temperature above 1 flattens both distributions, so that the teacher's small scores count:
    # [4, 0, -4] gives [0.98, 0.02, 0.00], and with T = 4 [0.67, 0.24, 0.09]. T^2 restores the size
    # of the gradient, which falls with 1 / T^2.
    log_s = F.log_softmax(_to_logits(ours, head.probabilities) / temperature, dim=-1)
    log_t = F.log_softmax(_to_logits(theirs, head.probabilities) / temperature, dim=-1)
    loss = temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    if not head.probabilities:
        # Masked classes would dominate the mean of the difference.
        allowed = theirs > FLOOR
        offset = (ours - theirs).where(allowed, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)
        loss = loss + offset.square() / 2
    return _average(loss, count)


def compute_hard_loss(
    head: Head, student: Sequence[torch.Tensor], labels: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hard loss of each sample, 0 without a label, and a mask of labelled samples.

    Args:
        head: the output that the labels refer to.
        student: the student's outputs.
        labels: [count] or [count, positions...]; except for scores, also the output's shape.
        count: number of samples.
    """
    from torch.nn import functional as F

    # Missing labels get an arbitrary valid value here, and the mask removes their loss.
    ours = head.arrange(student[head.index])
    labelled = has_label(labels)
    if head.scores:
        logits = _to_logits(ours, head.probabilities)
        classes = labels.clamp(min=0).reshape(-1)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), classes, reduction="none")
        loss = loss.reshape(labels.shape)
    elif head.binary:
        classes, ours = labels.nan_to_num().clamp(0, 1).float(), ours.reshape(labels.shape)
        # The logit of 0 or 1 is infinite.
        if head.tensor.kind == "probability":
            ours = ours.clamp(1e-6, 1 - 1e-6).logit()
        loss = F.binary_cross_entropy_with_logits(ours, classes, reduction="none")
    else:
        loss = (ours.reshape(labels.shape) - labels.nan_to_num()).square() / head.scale
    # [count, positions...] -> [count, positions], with one position for a label per sample.
    loss, labelled = (loss * labelled).reshape(count, -1), labelled.reshape(count, -1)
    # The mean over the labelled positions of each sample: of 8 tokens with 3 labels, over 3.
    number = labelled.sum(1)
    return loss.sum(1) / number.clamp(min=1), number > 0


def measure_cosine_distance(ours: torch.Tensor, theirs: torch.Tensor, count: int) -> torch.Tensor:
    """Return 1 - cosine of each sample, averaged over positions.

    The cosine is taken along the channels of images, and along the last axis otherwise.
    """
    from torch.nn import functional as F

    # [batch, channels, height, width] compares channels, [batch, tokens, width] the last axis.
    axis = 1 if ours.ndim > 3 else -1
    return _average(1 - F.cosine_similarity(ours.float(), theirs.float(), dim=axis), count)


def are_probabilities(scores: torch.Tensor) -> bool:
    """Return True if scores are the output of a softmax."""
    total = scores.float().sum(-1)
    return bool((scores >= 0).all() and (total - 1).abs().max() < 1e-3)


def _to_logits(scores: torch.Tensor, probabilities: bool) -> torch.Tensor:
    """Convert scores to finite logits."""
    if probabilities:
        return scores.clamp(min=1e-12).log()
    return scores.clamp(min=FLOOR)


def _average(values: torch.Tensor, count: int) -> torch.Tensor:
    """Average values per sample."""
    return values.reshape(count, -1).mean(1)
