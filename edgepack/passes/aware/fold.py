"""Folding of batch norms into the layers before them. Importing this module needs torch.

In eval mode a batch norm is y = gamma (x - mean) / sqrt(variance + eps) + beta, which changes only
the weight and bias of the layer that produces x. The export folds it in the same way; training the
folded network trains the weights and ranges that will be quantized. The statistics stay fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgepack.errors import ChainError
from edgepack.passes.aware.trace import Trace, Value, trace
from edgepack.passes.network import (
    are_outputs_equal,
    find_shared_weights,
    replace_submodule,
    run_network,
)

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
FORWARDS = frozenset(kind.forward for kind in LAYERS)
# Permitted change of the outputs by folding, relative to the largest value: rounding alone.
TOLERANCE = 1e-5


def find_folds(
    network: nn.Module, example: Sequence[torch.Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Find the batch norms that can be folded.

    Returns:
        layer -> the batch norm behind it, and for every other batch norm the reason.
    """
    parts = dict(network.named_modules())
    followed: dict[str, nn.Module] = {}
    for name, part in parts.items():
        if isinstance(part, (*LAYERS, _BatchNorm)):
            followed[name] = part
    record = trace(network, followed, example)
    # Folding a shared weight would change the output of its other owner.
    shared = find_shared_weights(network)
    folds: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, norm in followed.items():
        if not isinstance(norm, _BatchNorm):
            continue
        # The value that the batch norm read knows the layer that produced it, "" if none did.
        output = record.outputs.get(name)
        source, layer = None, ""
        if output is not None and output.source is not None:
            source, layer = output.source, output.source.layer
        reason = _reject(name, norm, source, parts.get(layer), record, shared)
        if reason:
            skipped[name] = reason
        else:
            folds[layer] = name
    return folds, skipped


def _reject(
    name: str,
    norm: nn.Module,
    source: Value | None,
    layer: nn.Module,
    record: Trace,
    shared: set[int],
) -> str:
    """Return the reason why a batch norm cannot be folded; "" if it can."""
    if norm.running_mean is None:
        return "it has no statistics"
    if source is None or not isinstance(layer, LAYERS):
        return "no convolution or linear layer precedes it"
    if record.calls[name] != 1 or record.calls[source.layer] != 1:
        return f"it or {source.layer} is called more than once"
    if source.readers != ["batch_norm"] or id(source) in record.returned:
        return f"it is not the only reader of the output of {source.layer}"
    if isinstance(layer, nn.Linear) and source.axes != 2:
        return f"its channels are not those of {source.layer}"
    if type(layer).forward not in FORWARDS:
        return f"{source.layer} overrides forward"
    if any(id(p) in shared for p in (*layer.parameters(), *norm.parameters())):
        return f"its weights or those of {source.layer} have several owners"
    if "weight" not in layer._parameters:
        return f"the weights of {source.layer} are computed from others"
    return ""


def fold(network: nn.Module, folds: Mapping[str, str], example: Sequence[torch.Tensor]) -> None:
    """Fold batch norms, in place.

    Args:
        network: in eval mode.
        folds: layer -> batch norm, of `find_folds`.
        example: the arguments of one call.

    Raises:
        ChainError: distill-fold if the outputs of the network change.
    """
    before = run_network(network, example)
    # y = f (W x + b - mean) + beta = (f W) x + (f (b - mean) + beta), f = gamma / sqrt(var + eps)
    with torch.no_grad():
        for name, norm_name in folds.items():
            layer, norm = network.get_submodule(name), network.get_submodule(norm_name)
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            factor = (variance + norm.eps).rsqrt()
            if norm.weight is not None:
                factor = factor * norm.weight.double()
            bias = torch.zeros_like(mean)
            if layer.bias is not None:
                bias = layer.bias.double()
            bias = (bias - mean) * factor
            if norm.bias is not None:
                bias = bias + norm.bias.double()
            # Output channels are axis 0 of the weight: [o] -> [o, 1, 1, 1] for a Conv2d.
            weight = layer.weight.double() * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
            _fold_one(network, name, norm_name)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    pairs = list(zip(before, run_network(network, example), strict=True))
    if not all(are_outputs_equal(*pair, TOLERANCE) for pair in pairs):
        change = max(float((a - b).abs().max()) for a, b in pairs)
        raise ChainError(
            "distill-fold",
            "the network's outputs change when its batch norms are folded",
            why=f"folded into the layers before them, they change the outputs by up to "
            f"{change:.3g}",
            hint="distill:aware=false; some code reads a layer's weights without calling the layer",
        )


def fold_structure(network: nn.Module, folds: Mapping[str, str]) -> None:
    """Fold the structure of batch norms, without the values of the weights."""
    for name, norm in folds.items():
        _fold_one(network, name, norm)


def _fold_one(network: nn.Module, name: str, norm: str) -> None:
    """Add a bias to a layer that has none, and replace its batch norm by an identity."""
    layer = network.get_submodule(name)
    if layer.bias is None:
        zeros = layer.weight.detach().new_zeros(len(layer.weight))
        layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)
    replace_submodule(network, norm, nn.Identity().eval())
