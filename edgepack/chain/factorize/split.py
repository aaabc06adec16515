"""The two layers that stand in the place of one. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgepack.chain.factorize.layers import CONVOLUTIONS, Layer, plain_kind
from edgepack.chain.factorize.spectrum import Spectrum
from edgepack.chain.network import is_transposed, put


def split_all(module: Any, ranks: Mapping[str, int], bias: bool) -> Any:
    """Put two layers in the place of each, without weights worth anything.

    Args:
        module: the network, which is changed.
        ranks: by name of the layer.
        bias: whether a layer without a bias gets one.
    """
    for name, rank in ranks.items():
        put(module, name, split(module.get_submodule(name), rank, bias))
    return module


def split(layer: Any, rank: int, bias: bool) -> nn.Sequential:
    """Two layers of the shapes that a rank gives, their values whatever the memory holds."""
    weight = layer.weight
    last = bias or layer.bias is not None
    layers: list[tuple[Any, ...]]
    if isinstance(layer, CONVOLUTIONS):
        kind = plain_kind(layer)
        window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        # ..., groups, bias, padding_mode
        layers = [
            (kind, layer.in_channels, rank, *window, 1, False, layer.padding_mode),
            (kind, rank, layer.out_channels, 1, 1, 0, 1, 1, last),
        ]
    else:
        inputs, outputs = weight.shape if is_transposed(layer) else weight.shape[::-1]
        layers = [(nn.Linear, inputs, rank, False), (nn.Linear, rank, outputs, last)]
    # skip_init draws no random numbers.
    made = [nn.utils.skip_init(*arguments, dtype=weight.dtype) for arguments in layers]
    return nn.Sequential(*made).train(layer.training).requires_grad_(weight.requires_grad)


def fill(pair: nn.Sequential, layer: Layer, spectrum: Spectrum) -> None:
    """Give two layers their weights: U_r s and U_r^T W / s, and the bias that keeps the mean.

    s, the root of each row's norm in U_r^T W, shares the scale out evenly, as a quantizer likes.
    """
    first, last = pair
    rank = first.weight.shape[0]
    basis = spectrum.basis[:, :rank]
    rows = basis.t() @ layer.matrix
    scale = rows.norm(dim=1).sqrt().clamp(min=1e-12)
    with torch.no_grad():
        first.weight.copy_((rows / scale[:, None]).reshape(first.weight.shape))
        last.weight.copy_((basis * scale).reshape(last.weight.shape))
        if last.bias is not None:
            bias = torch.zeros(layer.outputs, dtype=torch.float64)
            if layer.bias is not None:
                bias = bias + layer.bias
            if spectrum.mean is not None:
                bias = bias + spectrum.mean - basis @ (basis.t() @ spectrum.mean)
            last.bias.copy_(bias)
