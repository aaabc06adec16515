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
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepack.errors import ChainError
from edgepack.passes.module import Context
from edgepack.passes.network import make_arguments
from edgepack.passes.prune.channel_groups import Group, Slice
from edgepack.passes.prune.cut import is_channelwise
from edgepack.passes.prune.options import PruneOptions

LABELS, ANSWERS = "the loss on labelled training samples", "the answers to training samples"


def by_weights(module: nn.Module, groups: Sequence[Group], power: int) -> list[Any]:
    """Return the importance of the units of each group: tensors [units]."""
    scores = []
    for group in groups:
        layers = []
        for part in group.slices:
            weights = _by_channel(module, part)
            if weights is not None:
                # Several channels of a layer may depend on the same root channel, as behind a
                # flatten of a 7 x 7 window, where 49 inputs of a Linear do: sum over them.
                size = weights.double().abs().pow(power).sum(1)[list(part.channels)]
                totals = torch.zeros(group.channels, dtype=torch.float64)
                totals.index_add_(0, torch.tensor(part.roots), size)
                layers.append(totals / totals.mean().clamp(min=1e-30))
        # Heads compete with single channels by the mean of their channels, since a sum over 64
        # channels would favour heads.
        total = _of_units(group, torch.stack(layers).mean(0))
        scores.append(total / len(group.units[0]))
    return scores


def costs(
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
            weights = _by_channel(module, part)
            if weights is not None:
                # Each weight of a layer is used equally often, once per output position.
                share = len(part.channels) / group.channels * weights.shape[1]
                uses = 1.0 if macs is None else macs.get(part.name, 0) / weights.numel()
                cost += share * uses
        result.append(cost * len(group.units[0]))
    return result


def _by_channel(module: nn.Module, part: Slice) -> Any:
    """Return a layer's weights as [channels, ...] of one side; None for layers without a matrix."""
    if part.side == "parameter":
        return None
    layer = module.get_submodule(part.name)
    weight = getattr(layer, "weight", None)
    if weight is None or not isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm)):
        return None
    return _matrix(layer, weight.detach(), part.side)


def _matrix(layer: nn.Module, weight: torch.Tensor, side: str) -> Any:
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


def _of_units(group: Group, channels: Any) -> Any:
    """Sum values per root channel over the channels of each unit."""
    return torch.stack([channels[list(unit)].sum() for unit in group.units])


def by_taylor(
    module: nn.Module, groups: Sequence[Group], options: PruneOptions, context: Context
) -> tuple[list[Any], str]:
    """Return the importance of the units of each group, and a description of the measure.

    Raises ChainError `prune-labels` for a label outside the classes.
    """
    if context.training is None:
        raise ValueError("importance by Taylor needs the training samples")
    # A network may store tensors of a call, and those with gradients cannot be copied later.
    module = copy.deepcopy(module).requires_grad_(False)
    readers = [
        [part for part in group.slices if part.side == "inputs" and _reads(module, part)]
        for group in groups
    ]
    sums = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]
    # A layer may read the channels of several groups; its gradient is computed once per batch.
    layers: dict[str, Any] = {}
    for parts in readers:
        layers.update((part.name, module.get_submodule(part.name)) for part in parts)
    for layer in layers.values():
        layer.weight.requires_grad_()
    names, weights = list(layers), [layer.weight for layer in layers.values()]
    generator = torch.Generator().manual_seed(options.seed)
    count, by_labels = 0, None
    for batch in context.training.batches(options.batch_size):
        with torch.enable_grad():
            answer = module(*make_arguments(context, batch.inputs))
            outputs = answer if isinstance(answer, (tuple, list)) else (answer,)
            loss = _loss_of_labels(outputs, batch.labels, context)
            # The first batch decides: losses and projections are not on the same scale.
            if by_labels is None:
                by_labels = loss is not None
            if not by_labels:
                loss = _along(outputs, generator)
            if loss is None:
                continue
            gradients = dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True),
                                 strict=True))  # fmt: skip
        for index, (group, parts) in enumerate(zip(groups, readers, strict=True)):
            sums[index] += _of_units_squared(group, parts, layers, gradients)
        count += batch.count
        context.progress.tell(f"{count:,} training samples")
        if count >= options.samples:
            break
    measure = LABELS if by_labels else ANSWERS
    return [total / max(count, 1) for total in sums], measure


def _reads(module: nn.Module, part: Slice) -> bool:
    """Return True if the layer mixes its input channels."""
    layer = module.get_submodule(part.name)
    return isinstance(layer, (nn.Linear, _ConvNd)) and not is_channelwise(layer)


def _of_units_squared(
    group: Group, parts: Sequence[Slice], layers: Mapping[str, Any], gradients: Mapping[str, Any]
) -> Any:
    """Return the squared first-order change of the loss per unit, for one batch."""
    totals = torch.zeros(group.channels, dtype=torch.float64)
    for part in parts:
        layer, gradient = layers[part.name], gradients[part.name]
        if gradient is not None:
            product = _matrix(layer, layer.weight.detach() * gradient, "inputs")
            change = product.double().sum(1)[list(part.channels)]
            totals.index_add_(0, torch.tensor(part.roots), change)
    return _of_units(group, totals).square()


def _loss_of_labels(outputs: Sequence[Any], labels: torch.Tensor, context: Context) -> Any:
    """Return the cross entropy of the first output of scores; None if the labels do not fit it."""
    if labels is None or labels.dtype.kind not in "iu":
        return None
    index = next((i for i, t in enumerate(context.outputs) if t.kind == "scores"), None)
    if index is None:
        return None
    scores = outputs[index].movedim(context.outputs[index].axis, -1)
    if scores.shape[:-1] != labels.shape:
        return None
    # [batch, positions..., classes] -> [all positions, classes]
    scores = scores.flatten(0, -2)
    classes = torch.from_numpy(labels.astype("int64")).flatten()
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


def _along(outputs: Sequence[Any], generator: Any) -> Any:
    """Project the outputs on random directions, each output relative to its standard deviation."""
    total: Any = 0.0
    for output in outputs:
        if output.requires_grad:
            direction = torch.randn(output.shape, generator=generator, dtype=output.dtype)
            # Masked scores are infinite, and would turn the sum and its gradient into NaN.
            finite = torch.where(output.detach().isfinite(), output, 0.0)
            spread = finite.detach().std(correction=0).clamp(min=1e-12)
            total = total + (finite * direction).sum() / spread
    return total
