"""How far a student is from its teacher and from the labels.

For each sample, over all outputs:

    soft = T^2 KL(softmax(t / T) || softmax(s / T))       of "scores" (Hinton et al., 2015)
           + (mean s - mean t)^2 / 2
    soft = mean (s - t)^2 / variance of the teacher's     of "values"
    hard = cross entropy, binary of a "logit" or "probability",
           or (s - label)^2 / variance of "values"        where the sample has a label

    loss = alpha soft + (1 - alpha) hard,                 soft alone without a label

A softmax does not see what is added to all scores alike: without the second term the student's
would lie anywhere, and miss the SNR gate though its decisions are right. For large T the two
together tend to half the mean squared error of the scores. Outputs that are probabilities have no
such freedom.

Scores of several positions (tokens, pixels) count as their mean. Outputs that are probabilities
already (not negative, sum 1) are taken back to logits by their logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.chain.distill.options import DistillOptions
from edgepack.chain.training.data import has_label
from edgepack.runtime.tensor import Tensor

# Smallest logit: masked classes have minus infinity, of which there is no difference.
FLOOR = -1e4


@dataclass(frozen=True)
class Head:
    """One output that is learnt.

    Attributes:
        index: its position among the outputs.
        tensor: its name and kind.
        probabilities: whether its scores went through a softmax in the network.
        scale: of values, the variance of the teacher's; of scores 1.
    """

    index: int
    tensor: Tensor
    probabilities: bool
    scale: float

    @property
    def scores(self) -> bool:
        """Whether it is class scores."""
        return self.tensor.kind == "scores"

    @property
    def binary(self) -> bool:
        """Whether each of its values decides between two classes."""
        return self.tensor.kind in ("logit", "probability")

    def arrange(self, output: Any) -> Any:
        """Return this output of a network in float32, the classes of scores along the last axis."""
        values = output.float()
        return values.movedim(self.tensor.axis, -1) if self.scores else values


def soft_loss(
    heads: Sequence[Head], student: Sequence[Any], teacher: Mapping[int, Any], count: int,
    options: DistillOptions,
) -> Any:  # fmt: skip
    """The soft loss of each of `count` samples: a tensor [count]."""
    total: Any = 0.0
    for head in heads:
        ours, theirs = head.arrange(student[head.index]), head.arrange(teacher[head.index])
        if head.scores:
            total = total + _divergence(head, ours, theirs, count, options.temperature)
            continue
        total = total + _mean((ours - theirs).square() / head.scale, count)
        if options.cosine:
            total = total + options.cosine * opposed(ours, theirs, count)
    return total


def _divergence(head: Head, ours: Any, theirs: Any, count: int, temperature: float) -> Any:
    from torch.nn import functional as F

    log_s = F.log_softmax(_logits(ours, head.probabilities) / temperature, dim=-1)
    log_t = F.log_softmax(_logits(theirs, head.probabilities) / temperature, dim=-1)
    found = temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    if not head.probabilities:
        allowed = theirs > FLOOR
        apart = (ours - theirs).where(allowed, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)
        found = found + apart.square() / 2
    return _mean(found, count)


def hard_loss(head: Head, student: Sequence[Any], labels: Any, count: int) -> tuple[Any, Any]:
    """The loss against the labels of each sample, 0 where there is none; and whether there is one.

    Args:
        head: the output that the labels are of.
        student: its outputs.
        labels: [count] or [count, positions...]; of what is no scores also the output's own
            shape.
        count: number of samples.
    """
    from torch.nn import functional as F

    ours = head.arrange(student[head.index])
    known = has_label(labels)
    if head.scores:
        logits = _logits(ours, head.probabilities)
        classes = labels.clamp(min=0).reshape(-1)
        found = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), classes, reduction="none")
        found = found.reshape(labels.shape)
    elif head.binary:
        classes, ours = labels.nan_to_num().clamp(0, 1).float(), ours.reshape(labels.shape)
        if head.tensor.kind == "probability":
            ours = ours.clamp(1e-6, 1 - 1e-6).logit()
        found = F.binary_cross_entropy_with_logits(ours, classes, reduction="none")
    else:
        found = (ours.reshape(labels.shape) - labels.nan_to_num()).square() / head.scale
    found, known = (found * known).reshape(count, -1), known.reshape(count, -1)
    number = known.sum(1)
    return found.sum(1) / number.clamp(min=1), number > 0


def opposed(ours: Any, theirs: Any, count: int) -> Any:
    """1 - cosine of each sample, mean over positions; along channels, or else the last axis."""
    from torch.nn import functional as F

    axis = 1 if ours.ndim > 3 else -1
    return _mean(1 - F.cosine_similarity(ours.float(), theirs.float(), dim=axis), count)


def are_probabilities(scores: Any) -> bool:
    """Whether scores went through a softmax already."""
    total = scores.float().sum(-1)
    return bool((scores >= 0).all() and (total - 1).abs().max() < 1e-3)


def _logits(scores: Any, probabilities: bool) -> Any:
    if probabilities:
        return scores.clamp(min=1e-12).log()
    return scores.clamp(min=FLOOR)


def _mean(values: Any, count: int) -> Any:
    return values.reshape(count, -1).mean(1)
