"""Importance scores of channels. Importing this module needs torch.

l1, l2   norm of a channel's weights in each layer of its group, both the layers that produce it and
         those that read it, relative to the layer's mean; then the mean over the layers (Fang et
         al., arXiv:2301.12900)
taylor   E[(sum of w dL/dw over the weights that read the channel)^2], which is to first order the
         squared change of the loss L when the channel is removed (Molchanov et al.,
         arXiv:1906.10771). Without labels, L is the projection of the outputs on a random direction
         of unit variance per sample, and the mean is the expected squared change of the outputs.
         The score is divided by the parameters or multiply-accumulates that the channel costs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepack.errors import ChainError
from edgepack.passes.module import ModuleContext
from edgepack.passes.network import make_arguments
from edgepack.passes.prune.cut import is_channelwise
from edgepack.passes.prune.group import Group, Slice
from edgepack.passes.prune.options import PruneOptions

if TYPE_CHECKING:
    import numpy as np

LABELS, ANSWERS = "the loss on labelled training samples", "the answers to training samples"


def score_by_weights(module: nn.Module, groups: Sequence[Group], power: int) -> list[torch.Tensor]:
    """Return the importance of the units of each group: tensors [units].

    Two channels with the norms [3, 1] in the producing layer and [2, 6] in the reading one have,
    relative to the layers' means, [1.5, 0.5] and [0.5, 1.5]: both are equally important.
    """
    scores = []
    for group in groups:
        layers = []
        for part in group.slices:
            weights = _arrange_by_channel(module, part)
            if weights is not None:
                # Several channels of a layer may depend on the same root channel, as behind a
                # flatten of a 7 x 7 window, where 49 inputs of a Linear do: sum over them.
                size = weights.double().abs().pow(power).sum(1)[list(part.channels)]
                totals = torch.zeros(group.channels, dtype=torch.float64)
                totals.index_add_(0, torch.tensor(part.roots), size)
                layers.append(totals / totals.mean().clamp(min=1e-30))
        # Heads compete with single channels by the mean of their channels, since a sum over 64
        # channels would favour heads.
        total = _sum_units(group, torch.stack(layers).mean(0))
        scores.append(total / len(group.units[0]))
    return scores


def compute_costs(
    module: nn.Module, groups: Sequence[Group], macs: Mapping[str, int] | None
) -> list[float]:
    """Return the cost of a unit of each group: weights, or multiplications if `macs` is given.

    Args:
        module: the network.
        groups: groups of channels.
        macs: multiply-accumulates of each layer by name, or None.
    """
    result = []
    for group in groups:
        cost = 0.0
        for part in group.slices:
            weights = _arrange_by_channel(module, part)
            if weights is not None:
                # Each weight of a layer is used equally often, once per output position.
                share = len(part.channels) / group.channels * weights.shape[1]
                uses = 1.0
                if macs is not None:
                    uses = macs.get(part.name, 0) / weights.numel()
                cost += share * uses
        result.append(cost * len(group.units[0]))
    return result


def _arrange_by_channel(module: nn.Module, part: Slice) -> torch.Tensor | None:
    """Return a layer's weights as [channels, ...] of one side; None for layers without a matrix."""
    if part.side == "parameter":
        return None
    layer = module.get_submodule(part.name)
    weight = getattr(layer, "weight", None)
    if weight is None or not isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm)):
        return None
    return _to_matrix(layer, weight.detach(), part.side)


def _to_matrix(layer: nn.Module, weight: torch.Tensor, side: str) -> torch.Tensor:
    """Reshape weights, or their gradients, to [channels of one side, rest].

    For example the weight [8, 2, 3, 3] of a convolution 4 -> 8 in 2 groups becomes [8, 18] for its
    outputs, and [4, 36] for its inputs: each is read by the 4 outputs of its own group.
    """
    if isinstance(layer, _BatchNorm) or is_channelwise(layer):
        return weight.reshape(len(weight), -1)
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.transpose(0, 1)
    if side == "outputs":
        return weight.flatten(1)
    groups = getattr(layer, "groups", 1)
    outputs, inputs = weight.shape[:2]
    parts = weight.reshape(groups, outputs // groups, inputs, -1).transpose(1, 2)
    return parts.reshape(groups * inputs, -1)


def _sum_units(group: Group, channels: torch.Tensor) -> torch.Tensor:
    """Sum values per root channel over the channels of each unit."""
    return torch.stack([channels[list(unit)].sum() for unit in group.units])


def score_by_taylor(
    module: nn.Module, groups: Sequence[Group], options: PruneOptions, context: ModuleContext
) -> tuple[list[torch.Tensor], str]:
    """Return the importance of the units of each group, and a description of the measure.

    Raises ChainError `prune-labels` for a label outside the classes.
    """
    if context.training is None:
        raise ValueError("importance by Taylor needs the training samples")
    # A network may store tensors of a call, and those with gradients cannot be copied later.
    module = copy.deepcopy(module).requires_grad_(False)
    # With the weights that read it at zero a channel has no effect, so only these weights count.
    readers = [_find_readers(module, group) for group in groups]
    sums = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]
    # A layer may read the channels of several groups; its gradient is computed once per batch.
    weights: dict[str, torch.Tensor] = {}
    layers: dict[str, nn.Module] = {}
    for parts in readers:
        for part in parts:
            layers[part.name] = module.get_submodule(part.name)
            weights[part.name] = layers[part.name].weight.requires_grad_()
    loss = _Loss(context, torch.Generator().manual_seed(options.seed))
    count = 0
    for batch in context.training.batches(options.batch_size):
        with torch.enable_grad():
            answer = module(*make_arguments(context, batch.inputs))
            # A network with one output may return it without a tuple.
            outputs = answer if isinstance(answer, (tuple, list)) else (answer,)
            value = loss.compute(outputs, batch.labels)
            if value is None:
                continue
            # A layer that this call does not reach has no gradient; its entry is None.
            answers = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            gradients = dict(zip(weights, answers, strict=True))
        for total, group, parts in zip(sums, groups, readers, strict=True):
            total += _square_changes(group, parts, layers, gradients)
        count += batch.count
        context.progress.tell(f"{count:,} training samples")
        if count >= options.samples:
            break
    return [total / max(count, 1) for total in sums], loss.measure


class _Loss:
    """Loss of the batches: on their labels, or the projection of the outputs.

    The first batch decides, since losses and projections are not on the same scale.
    """

    def __init__(self, context: ModuleContext, generator: torch.Generator) -> None:
        self.context, self.generator = context, generator
        self.by_labels: bool | None = None

    @property
    def measure(self) -> str:
        """Return the description of the measure of importance."""
        return LABELS if self.by_labels else ANSWERS

    def compute(
        self, outputs: Sequence[torch.Tensor], labels: np.ndarray | None
    ) -> torch.Tensor | float | None:
        """Return the loss of a batch; None for one without labels among others with labels."""
        loss = _compute_loss(outputs, labels, self.context)
        if self.by_labels is None:
            self.by_labels = loss is not None
        if self.by_labels:
            return loss
        return _project(outputs, self.generator)


def _find_readers(module: nn.Module, group: Group) -> list[Slice]:
    """Return the slices of the layers that mix the channels of a group into their outputs."""
    readers = []
    for part in group.slices:
        if part.side != "inputs":
            continue
        layer = module.get_submodule(part.name)
        if isinstance(layer, (nn.Linear, _ConvNd)) and not is_channelwise(layer):
            readers.append(part)
    return readers


def _square_changes(
    group: Group,
    parts: Sequence[Slice],
    layers: Mapping[str, nn.Module],
    gradients: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Return the squared first-order change of the loss per unit, for one batch.

    Removing a channel sets the weights w that read it to zero, which changes the loss by about
    -sum w dL/dw. The sum goes over all readers before it is squared: changes of +2 and -2 in two
    layers cancel, and the channel has no effect.
    """
    totals = torch.zeros(group.channels, dtype=torch.float64)
    for part in parts:
        layer, gradient = layers[part.name], gradients[part.name]
        if gradient is not None:
            product = _to_matrix(layer, layer.weight.detach() * gradient, "inputs")
            change = product.double().sum(1)[list(part.channels)]
            totals.index_add_(0, torch.tensor(part.roots), change)
    return _sum_units(group, totals).square()


def _compute_loss(
    outputs: Sequence[torch.Tensor], labels: np.ndarray | None, context: ModuleContext
) -> torch.Tensor | None:
    """Return the cross entropy of the first output of scores; None if the labels do not fit it."""
    if labels is None or labels.dtype.kind not in "iu":
        return None
    kinds = [output.kind for output in context.outputs]
    if "scores" not in kinds:
        return None
    index = kinds.index("scores")
    scores = outputs[index].movedim(context.outputs[index].axis, -1)
    if scores.shape[:-1] != labels.shape:
        return None
    # [batch, positions..., classes] -> [all positions, classes]
    scores = scores.flatten(0, -2)
    classes = torch.from_numpy(labels.astype("int64")).flatten()
    # Negative labels mark samples, or positions of a sample, that have none.
    labelled = classes >= 0
    if not bool(labelled.any()):
        return None
    if int(classes.max()) >= scores.shape[-1]:
        raise ChainError(
            "prune-labels",
            f"a label is outside the {scores.shape[-1]} classes of {context.outputs[index].name}",
            why=f"the largest label is {int(classes.max())}; classes count from 0",
            hint="-1 marks a sample without a label; importance=l2 needs no labels",
        )
    return F.cross_entropy(scores[labelled], classes[labelled], reduction="sum")


def _project(outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor | float:
    """Project the outputs on random directions, each output relative to its standard deviation."""
    total: torch.Tensor | float = 0.0
    for output in outputs:
        if output.requires_grad:
            direction = torch.randn(output.shape, generator=generator, dtype=output.dtype)
            # Masked scores are infinite, and would turn the sum and its gradient into NaN.
            finite = torch.where(output.detach().isfinite(), output, 0.0)
            spread = finite.detach().std(correction=0).clamp(min=1e-12)
            total = total + (finite * direction).sum() / spread
    return total
