"""Layers of a network to quantize while it trains. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgepack.passes.aware.fold import FORWARDS, LAYERS
from edgepack.passes.aware.trace import Value, trace
from edgepack.passes.quantize.dynamic_and_weight_only.constants import NOT_DYNAMIC
from edgepack.passes.quantize.layers import SLOW_VOLUME

# The quantization behind a convolution absorbs these functions.
CLAMPS = frozenset(("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip"))
# These functions quantize their own inputs.
LINEAR = frozenset(("conv1d", "conv2d", "conv3d", "linear"))


@dataclass(frozen=True)
class Sites:
    """Names of layers to quantize.

    Attributes:
        layers: layers with quantized weights and inputs.
        outputs: those of them with quantized outputs as well.
        skipped: for each other layer, the reason.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    skipped: dict[str, str]


def find_sites(
    network: nn.Module, example: Sequence[torch.Tensor], mode: str, conv3d: str = "static"
) -> Sites:
    """Predict the layers around which `quantize` will insert Q/DQ pairs.

    Args:
        network: in eval mode, with its batch norms folded.
        example: the arguments of one call.
        mode: of `quantize`.
        conv3d: form of three-dimensional convolutions; only static ones compute in 8 bits.
    """
    followed: dict[str, nn.Module] = {}
    for name, part in network.named_modules():
        if isinstance(part, LAYERS):
            followed[name] = part
    record = trace(network, followed, example)
    layers: list[str] = []
    outputs: list[str] = []
    skipped: dict[str, str] = {}
    for name, layer in followed.items():
        reason = _reject_form(layer, mode, conv3d) or _reject(layer, record.outputs.get(name))
        if reason:
            skipped[name] = reason
            continue
        layers.append(name)
        # Of a linear layer, only the weights and the input are quantized.
        if mode == "static" and not isinstance(layer, nn.Linear):
            output = record.outputs[name]
            if _has_quantized_output(output, id(output) in record.returned):
                outputs.append(name)
    return Sites(tuple(layers), tuple(outputs), skipped)


def _reject_form(layer: nn.Module, mode: str, conv3d: str) -> str:
    """Return the reason why `quantize` leaves a kind of layer in float; "" if it does not."""
    if mode == "dynamic" and not isinstance(layer, nn.Linear):
        return NOT_DYNAMIC["Conv"]
    if mode == "static" and conv3d != "static" and isinstance(layer, nn.Conv3d):
        return SLOW_VOLUME
    return ""


def _reject(layer: nn.Module, output: Value | None) -> str:
    """Return the reason why a layer is not quantized; "" if it is."""
    if output is None:
        return "the network reads its weights without calling it, or does not use it"
    if type(layer).forward not in FORWARDS:
        return "its class overrides forward"
    if "weight" not in layer._parameters:
        return "its weights are computed from others"
    if layer.weight.dtype != torch.float32:
        return f"its weights are {layer.weight.dtype}"
    return ""


def _has_quantized_output(output: Value, returned: bool) -> bool:
    """Return True if a convolution's output is quantized itself, not behind a clamp or by readers.

    An output that relu alone reads is quantized behind the relu; one that conv2d alone reads is
    quantized as that layer's input. One that an addition reads is quantized here.
    """
    readers = set(output.readers)
    return returned or not readers or not (readers <= CLAMPS or readers <= LINEAR)
