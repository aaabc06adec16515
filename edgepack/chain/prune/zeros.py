"""Single weights become zero. Only importable where torch is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepack.chain.network import select
from edgepack.chain.prune.options import PruneOptions
from edgepack.errors import ChainError


@dataclass
class Zeros:
    """What became zero.

    Attributes:
        layers: by name of the layer, number of its weights and of the zeros among them.
        left: by name of the layer, why it keeps its weights.
    """

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def prune_weights(module: Any, options: PruneOptions) -> Zeros:
    """Make the smallest weights of Linears and convolutions zero, biases aside.

    Raises ChainError: prune-layers, prune-nothing.
    """
    found = Zeros()
    layers = _layers(module, options, found)
    if options.pattern:
        masks = {name: _two_of_four(layer) for name, layer in layers.items()}
    elif options.per_layer:
        masks = {n: _smallest([x.weight], options.unstructured)[0] for n, x in layers.items()}
    else:
        weights = [layer.weight for layer in layers.values()]
        masks = dict(zip(layers, _smallest(weights, options.unstructured), strict=True))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.masked_fill_(masks[name], 0)
            found.layers[name] = (layer.weight.numel(), int((layer.weight == 0).sum()))
    return found


def _layers(module: Any, options: PruneOptions, found: Zeros) -> dict[str, Any]:
    """The layers whose weights become zero."""
    known = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}
    chosen = select(options.NAME, list(known), options.include, options.exclude)
    layers: dict[str, Any] = {}
    seen: set[int] = set()
    for name, layer in known.items():
        reason = ""
        if name not in chosen:
            reason = "the options leave it"
        elif "weight" not in layer._parameters:
            reason = "its weights are computed from others"
        elif id(layer.weight) in seen:
            reason = "it has the weights of a layer before it"
        elif options.pattern:
            reason = _patternless(layer)
        if reason:
            found.left[name] = reason
        else:
            layers[name] = layer
            seen.add(id(layer.weight))
    if not layers:
        raise ChainError(
            "prune-nothing",
            "the network has no weights that could become zero",
            why="; ".join(f"{name}: {why}" for name, why in list(found.left.items())[:6])
            or "it has no Linear and no convolution",
            hint="leave prune out of the chain",
        )
    return layers


def _patternless(layer: Any) -> str:
    """Why no kernel takes a layer's weights in fours; "" where one does."""
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution has no pattern"
    inputs = layer.weight.shape[1]
    if inputs % 4:
        return f"its {inputs} input channels (of a group) are no multiple of 4"
    return ""


def _two_of_four(layer: Any) -> Any:
    """Where the two smallest of every four weights along the input stand; of equals the later."""
    # [outputs, window..., inputs]: a kernel sums over input channels first.
    weights = layer.weight.detach().abs().movedim(1, -1)
    fours = weights.reshape(-1, 4)
    order = fours.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    return mask.reshape(weights.shape).movedim(-1, 1)


def _smallest(weights: list[Any], share: float) -> list[Any]:
    """Where the smallest of all weights stand, exactly that share; of equals the earlier."""
    sizes = torch.cat([weight.detach().abs().double().flatten() for weight in weights])
    order = sizes.argsort(stable=True)
    mask = torch.zeros(len(sizes), dtype=torch.bool)
    mask[order[: round(share * len(sizes))]] = True
    parts = mask.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
