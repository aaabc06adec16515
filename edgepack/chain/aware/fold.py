"""Batch norms into the layers before them. Only importable where torch is.

In eval mode a batch norm is y = gamma (x - mean) / sqrt(variance + eps) + beta: another weight
and another bias of the layer that gives x. The export does the same; training the network so lets
weights and ranges be those that are quantized, with the statistics as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgepack.chain.aware.trace import Trace, Value, trace
from edgepack.chain.network import alike, ask, put, shared_weights
from edgepack.errors import ChainError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Of the largest value: what folding may change, rounding alone.
TOLERANCE = 1e-5


def find_folds(network: Any, example: Sequence[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Which batch norms can be folded.

    Returns:
        layer -> the batch norm behind it, and of every other batch norm why it stays.
    """
    parts = dict(network.named_modules())
    followed = {n: p for n, p in parts.items() if isinstance(p, (*LAYERS, _BatchNorm))}
    seen = trace(network, followed, example)
    shared = shared_weights(network)
    folds: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, norm in followed.items():
        if isinstance(norm, _BatchNorm):
            source = seen.made[name].source if name in seen.made else None
            layer = source.layer if source is not None else ""
            reason = _bound(name, norm, source, parts.get(layer), seen, shared)
            if reason:
                left[name] = reason
            else:
                folds[layer] = name
    return folds, left


def _bound(
    name: str, norm: Any, source: Value | None, layer: Any, seen: Trace, shared: set[int]
) -> str:
    """Why a batch norm cannot be folded, or ""."""
    if norm.running_mean is None:
        return "it keeps no statistics"
    if source is None or not isinstance(layer, LAYERS):
        return "no convolution or linear layer stands before it"
    if seen.calls[name] != 1 or seen.calls[source.layer] != 1:
        return f"it or {source.layer} is called more than once"
    if source.readers != ["batch_norm"] or id(source) in seen.answered:
        return f"it is not alone to read what {source.layer} gives"
    if isinstance(layer, nn.Linear) and source.axes != 2:
        return f"its channels are not those of {source.layer}"
    if type(layer).forward not in {kind.forward for kind in LAYERS}:
        return f"{source.layer} computes in a way of its own"
    if any(id(p) in shared for part in (layer, norm) for p in part.parameters()):
        return f"its weights or those of {source.layer} have several owners"
    if "weight" not in layer._parameters:
        return f"the weights of {source.layer} are computed from others"
    return ""


def fold(network: Any, folds: Mapping[str, str], example: Sequence[Any]) -> None:
    """Fold batch norms, in place.

    Args:
        network: in eval mode.
        folds: layer -> batch norm, of `find_folds`.
        example: the arguments of one call.

    Raises:
        ChainError: distill-fold where the network answers otherwise afterwards.
    """
    before = ask(network, example)
    with torch.no_grad():
        for name, norm_name in folds.items():
            layer, norm = network.get_submodule(name), network.get_submodule(norm_name)
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            factor = (variance + norm.eps).rsqrt()
            if norm.weight is not None:
                factor = factor * norm.weight.double()
            bias = (0 if layer.bias is None else layer.bias.double()) - mean
            bias = bias * factor + (0 if norm.bias is None else norm.bias.double())
            weight = layer.weight.double() * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
            _fold_one(network, name, norm_name)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    after = ask(network, example)
    if not all(alike(*pair, TOLERANCE) for pair in zip(before, after, strict=True)):
        worst = [float((one - other).abs().max()) for one, other in zip(before, after, strict=True)]
        raise ChainError(
            "distill-fold",
            "the network does not compute the same without its batch norms",
            why=f"folded into the layers before them, they change the answers by up to "
            f"{max(worst):.3g}",
            hint="distill:aware=false; something reads a layer's weights past the layer",
        )


def fold_structure(network: Any, folds: Mapping[str, str]) -> None:
    """The same, without the values of the weights."""
    for name, norm in folds.items():
        _fold_one(network, name, norm)


def _fold_one(network: Any, name: str, norm: str) -> None:
    layer = network.get_submodule(name)
    if layer.bias is None:
        zeros = layer.weight.detach().new_zeros(len(layer.weight))
        layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)
    put(network, norm, nn.Identity().eval())
