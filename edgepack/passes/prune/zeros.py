"""Pruning of single weights. Importing this module needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.conv import _ConvTransposeNd

from edgepack.errors import ChainError
from edgepack.passes.network import select_layers
from edgepack.passes.prune.layers import find_weighted_layers, join_reasons
from edgepack.passes.prune.options import PruneOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass
class PrunedWeights:
    """Result of zeroing weights.

    Attributes:
        layers: number of weights, and of zeros among them, by layer name.
        skipped: for each layer that was not pruned, the reason.
    """

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def prune_weights(module: nn.Module, options: PruneOptions) -> PrunedWeights:
    """Zero the smallest weights of Linears and convolutions, in place; biases are unchanged.

    Raises ChainError: prune-layers, prune-nothing.
    """
    result = PrunedWeights()
    layers = _select_layers(module, options, result)
    # Masks of all layers first: a share of the whole network compares weights across layers.
    weights = {name: layer.weight for name, layer in layers.items()}
    masks: dict[str, torch.Tensor] = {}
    if options.pattern:
        for name, weight in weights.items():
            masks[name] = _mask_two_of_four(weight)
    elif options.per_layer:
        for name, weight in weights.items():
            (masks[name],) = _mask_smallest([weight], options.unstructured)
    else:
        all_masks = _mask_smallest(list(weights.values()), options.unstructured)
        masks = dict(zip(weights, all_masks, strict=True))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.masked_fill_(masks[name], 0)
            result.layers[name] = (layer.weight.numel(), int((layer.weight == 0).sum()))
    return result


def _select_layers(
    module: nn.Module, options: PruneOptions, result: PrunedWeights
) -> dict[str, nn.Module]:
    """Return the layers to prune by name, and record why others are skipped."""
    candidates = find_weighted_layers(module)
    selection = select_layers(options.NAME, list(candidates), options.include, options.exclude)
    layers: dict[str, nn.Module] = {}
    weight_ids: set[int] = set()
    for name, layer in candidates.items():
        reason = ""
        if name not in selection:
            reason = "the options exclude it"
        elif "weight" not in layer._parameters:
            reason = "its weights are computed from others"
        elif id(layer.weight) in weight_ids:
            reason = "it shares the weights of an earlier layer"
        elif options.pattern:
            reason = _reject_pattern(layer)
        if reason:
            result.skipped[name] = reason
        else:
            layers[name] = layer
            # A shared weight is pruned once, as that of its first layer.
            weight_ids.add(id(layer.weight))
    if not layers:
        raise ChainError(
            "prune-nothing",
            "no weight of the network can be zeroed",
            why=join_reasons(result.skipped, 6) or "it has no Linear and no convolution",
            hint="remove prune from the chain",
        )
    return layers


def _reject_pattern(layer: nn.Module) -> str:
    """Return the reason for which no kernel supports the pattern in a layer; "" if one does."""
    if isinstance(layer, _ConvTransposeNd):
        return "no kernel supports the pattern in a transposed convolution"
    inputs = layer.weight.shape[1]
    if inputs % 4:
        return f"its {inputs} input channels (of a group) are not a multiple of 4"
    return ""


def _mask_two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Return the mask of the two smallest of every four weights along the input.

    |w| = [3, 1, 2, 2] gives [False, True, False, True]: the later one of equal weights is zeroed.
    """
    # [outputs, window..., inputs]: kernels sum over input channels first, so fours lie along them.
    weights = weight.detach().abs().movedim(1, -1)
    fours = weights.reshape(-1, 4)
    order = fours.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    return mask.reshape(weights.shape).movedim(-1, 1)


def _mask_smallest(weights: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Return masks of the smallest of all weights, exactly that share of them.

    [1, -4] and [2, 3] at a share of 0.5 give [True, False] and [True, False]. The earlier one of
    equal weights is zeroed: the sort is stable.
    """
    sizes = torch.cat([weight.detach().abs().double().flatten() for weight in weights])
    # A sort rather than a threshold: ties at a threshold would zero more than the share.
    order = sizes.argsort(stable=True)
    mask = torch.zeros(len(sizes), dtype=torch.bool)
    mask[order[: round(share * len(sizes))]] = True
    parts = mask.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
