"""What of a network is computed in 8 bits while it trains. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgepack.chain.aware.fold import LAYERS
from edgepack.chain.aware.trace import Value, trace
from edgepack.chain.quantize.layers import SLOW_VOLUME
from edgepack.chain.quantize.unranged.choose import NOT_DYNAMIC

# What the quantization behind a convolution absorbs.
CLAMPS = frozenset(("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip"))
# Whose readers quantize what they read themselves.
LINEAR = frozenset(("conv1d", "conv2d", "conv3d", "linear"))


@dataclass(frozen=True)
class Sites:
    """Names of layers.

    Attributes:
        layers: those whose weights and inputs are quantized.
        outputs: of them, those whose outputs are quantized too.
        left: by name, why others are not.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    left: dict[str, str]


def find_sites(network: Any, example: Sequence[Any], mode: str, conv3d: str = "static") -> Sites:
    """Where `quantize` will place pairs around the layers of a network, as far as it can be told.

    Args:
        network: in eval mode, its batch norms folded.
        example: the arguments of one call.
        mode: of `quantize`.
        conv3d: form of three-dimensional convolutions; only static ones compute in 8 bits.
    """
    followed = {name: p for name, p in network.named_modules() if isinstance(p, LAYERS)}
    seen = trace(network, followed, example)
    left = {name: _bound(layer, seen.made.get(name)) for name, layer in followed.items()}
    if mode == "dynamic":
        convolutions = [name for name, p in followed.items() if not isinstance(p, nn.Linear)]
        left |= dict.fromkeys(convolutions, NOT_DYNAMIC["Conv"])
    if mode == "static" and conv3d != "static":
        volumes = [name for name, p in followed.items() if isinstance(p, nn.Conv3d)]
        left |= dict.fromkeys(volumes, SLOW_VOLUME)
    layers = tuple(name for name, reason in left.items() if not reason)
    outputs = [
        name
        for name in layers
        if mode == "static"
        and not isinstance(followed[name], nn.Linear)
        and _rounded(seen.made[name], id(seen.made[name]) in seen.answered)
    ]
    return Sites(layers, tuple(outputs), {name: reason for name, reason in left.items() if reason})


def _bound(layer: Any, made: Value | None) -> str:
    """Why a layer is left as it is, or ""."""
    if made is None:
        return "the network reads its weights without calling it, or does not use it"
    if type(layer).forward not in {kind.forward for kind in LAYERS}:
        return "it computes in a way of its own"
    if "weight" not in layer._parameters:
        return "its weights are computed from others"
    if layer.weight.dtype != torch.float32:
        return f"its weights are {layer.weight.dtype}"
    return ""


def _rounded(made: Value, answered: bool) -> bool:
    """Whether what a convolution gives is quantized as it is, not behind a clamp."""
    readers = set(made.readers)
    return answered or not readers or not (readers <= CLAMPS or readers <= LINEAR)
