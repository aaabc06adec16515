"""What the network loses with a channel. Only importable where torch is.

l1, l2   of a channel's weights in every layer of its group, those that make it and those that
         read it, each relative to its layer's mean; then the mean over the layers (Fang et al.,
         arXiv:2301.12900)
taylor   E[(sum of w dL/dw over the weights that read the channel)^2], to first order the square of
         what the loss L changes without it (Molchanov et al., arXiv:1906.10771). Without labels L
         is the answer along a random direction of unit variance for each sample, of which that
         mean is the expected squared change of the answer itself. Relative to the parameters or
         multiply-accumulates that go with the channel: what the budget is paid with.
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

from edgepack.chain.module import Context
from edgepack.chain.network import arguments
from edgepack.chain.prune.cut import is_channelwise
from edgepack.chain.prune.graph import Group, Slice
from edgepack.chain.prune.options import PruneOptions
from edgepack.errors import ChainError

LABELS, ANSWERS = "the loss on labelled training samples", "the answers to training samples"


def by_weights(module: Any, groups: Sequence[Group], power: int) -> list[Any]:
    """The importance of every unit of every group: tensors [units]."""
    found = []
    for group in groups:
        layers = []
        for part in group.slices:
            weights = _by_channel(module, part)
            if weights is not None:
                size = weights.double().abs().pow(power).sum(1)[list(part.channels)]
                each = torch.zeros(group.channels, dtype=torch.float64)
                each.index_add_(0, torch.tensor(part.roots), size)
                layers.append(each / each.mean().clamp(min=1e-30))
        # A head's channels compete as single ones do: by their mean.
        total = _of_units(group, torch.stack(layers).mean(0))
        found.append(total / len(group.units[0]))
    return found


def costs(module: Any, groups: Sequence[Group], macs: Mapping[str, int] | None) -> list[float]:
    """What a unit of each group costs: weights, or with `macs` (by layer) their multiplications."""
    found = []
    for group in groups:
        cost = 0.0
        for part in group.slices:
            weights = _by_channel(module, part)
            if weights is not None:
                share = len(part.channels) / group.channels * weights.shape[1]
                uses = 1.0 if macs is None else macs.get(part.name, 0) / weights.numel()
                cost += share * uses
        found.append(cost * len(group.units[0]))
    return found


def _by_channel(module: Any, part: Slice) -> Any:
    """A layer's weights as [channels, ...] of one side; None where they say nothing."""
    if part.side == "parameter":
        return None
    layer = module.get_submodule(part.name)
    weight = getattr(layer, "weight", None)
    if weight is None or not isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm)):
        return None
    return _matrix(layer, weight.detach(), part.side)


def _matrix(layer: Any, weight: Any, side: str) -> Any:
    """[channels of that side, the rest], of the weights or their gradients."""
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
    return torch.stack([channels[list(unit)].sum() for unit in group.units])


def by_taylor(
    module: Any, groups: Sequence[Group], options: PruneOptions, context: Context
) -> tuple[list[Any], str]:
    """The importance of every unit of every group, and what it was measured by.

    Raises ChainError `prune-labels` for a label that is none of the classes.
    """
    if context.training is None:
        raise ValueError("importance by Taylor needs the training samples")
    # What a network keeps of a call with gradients cannot be copied afterwards.
    module = copy.deepcopy(module).requires_grad_(False)
    readers = [
        [part for part in group.slices if part.side == "inputs" and _reads(module, part)]
        for group in groups
    ]
    sums = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]
    layers = {part.name: module.get_submodule(part.name) for parts in readers for part in parts}
    for layer in layers.values():
        layer.weight.requires_grad_()
    names, weights = list(layers), [layer.weight for layer in layers.values()]
    generator = torch.Generator().manual_seed(options.seed)
    seen, by_labels = 0, None
    for batch in context.training.batches(options.batch_size):
        with torch.enable_grad():
            answer = module(*arguments(context, batch.inputs))
            outputs = answer if isinstance(answer, (tuple, list)) else (answer,)
            loss = _loss_of_labels(outputs, batch.labels, context)
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
        seen += batch.count
        context.progress.tell(f"{seen:,} training samples")
        if seen >= options.samples:
            break
    return [found / max(seen, 1) for found in sums], LABELS if by_labels else ANSWERS


def _reads(module: Any, part: Slice) -> bool:
    layer = module.get_submodule(part.name)
    return isinstance(layer, (nn.Linear, _ConvNd)) and not is_channelwise(layer)


def _of_units_squared(
    group: Group, parts: Sequence[Slice], layers: Mapping[str, Any], gradients: Mapping[str, Any]
) -> Any:
    each = torch.zeros(group.channels, dtype=torch.float64)
    for part in parts:
        layer, gradient = layers[part.name], gradients[part.name]
        if gradient is not None:
            product = _matrix(layer, layer.weight.detach() * gradient, "inputs")
            change = product.double().sum(1)[list(part.channels)]
            each.index_add_(0, torch.tensor(part.roots), change)
    return _of_units(group, each).square()


def _loss_of_labels(outputs: Sequence[Any], labels: Any, context: Context) -> Any:
    """The cross entropy of the first output of scores; None where labels are of something else."""
    if labels is None or labels.dtype.kind not in "iu":
        return None
    index = next((i for i, t in enumerate(context.outputs) if t.kind == "scores"), None)
    if index is None:
        return None
    scores = outputs[index].movedim(context.outputs[index].axis, -1)
    if scores.shape[:-1] != labels.shape:
        return None
    scores = scores.flatten(0, -2)
    classes = torch.from_numpy(labels.astype("int64")).flatten()
    known = classes >= 0
    if not bool(known.any()):
        return None
    if int(classes.max()) >= scores.shape[-1]:
        raise ChainError(
            "prune-labels",
            f"a label is none of the {scores.shape[-1]} classes of {context.outputs[index].name}",
            why=f"there is a label {int(classes.max())}; classes count from 0",
            hint="-1 marks a sample without a label; importance=l2 needs none",
        )
    return F.cross_entropy(scores[known], classes[known], reduction="sum")


def _along(outputs: Sequence[Any], generator: Any) -> Any:
    """The answers along random directions, each output relative to its spread."""
    total: Any = 0.0
    for output in outputs:
        if output.requires_grad:
            direction = torch.randn(output.shape, generator=generator, dtype=output.dtype)
            finite = torch.where(output.detach().isfinite(), output, 0.0)
            spread = finite.detach().std(correction=0).clamp(min=1e-12)
            total = total + (finite * direction).sum() / spread
    return total
