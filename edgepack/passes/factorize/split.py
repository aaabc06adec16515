"""Construction of the two layers that replace one. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgepack.passes.factorize.layers import CONVOLUTIONS, Layer, find_torch_class
from edgepack.passes.factorize.spectrum import Spectrum
from edgepack.passes.network import is_transposed, replace_submodule


def split_all(module: nn.Module, ranks: Mapping[str, int], bias: bool) -> nn.Module:
    """Replace each layer by two with uninitialized weights, in place.

    Args:
        module: the network.
        ranks: rank by layer name.
        bias: True to add a bias to layers that have none.
    """
    for name, rank in ranks.items():
        replace_submodule(module, name, split(module.get_submodule(name), rank, bias))
    return module


def split(layer: nn.Module, rank: int, bias: bool) -> nn.Sequential:
    """Return two layers for a rank, with uninitialized weights.

    A convolution 64 -> 128 with a 3 x 3 window at rank 16 becomes a 3 x 3 convolution 64 -> 16
    without a bias and a 1 x 1 convolution 16 -> 128.
    """
    weight = layer.weight
    # Stride, padding and dilation belong to the first layer; the second acts on single positions.
    last = bias or layer.bias is not None
    # Class and constructor arguments of each layer.
    layers: list[tuple[object, ...]]
    if isinstance(layer, CONVOLUTIONS):
        kind = find_torch_class(layer)
        window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        # ..., groups, bias, padding_mode
        layers = [
            (kind, layer.in_channels, rank, *window, 1, False, layer.padding_mode),
            (kind, rank, layer.out_channels, 1, 1, 0, 1, 1, last),
        ]
    else:
        outputs, inputs = weight.shape
        if is_transposed(layer):
            inputs, outputs = weight.shape
        layers = [(nn.Linear, inputs, rank, False), (nn.Linear, rank, outputs, last)]
    # skip_init allocates without initializing, so that the global random state does not advance.
    pair = [nn.utils.skip_init(*arguments, dtype=weight.dtype) for arguments in layers]
    return nn.Sequential(*pair).train(layer.training).requires_grad_(weight.requires_grad)


def fill(pair: nn.Sequential, layer: Layer, spectrum: Spectrum) -> None:
    """Set the weights of two layers to U_r^T W / s and U_r s, and the bias to preserve the mean.

    The factor s, the square root of each row's norm in U_r^T W, balances the scale between the two
    layers, so that neither loses precision when it is quantized.
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
            # The mean of the part of the output that the rank cannot represent: the last term of
            # b' = b + (1 - U_r U_r^T) E[y].
            if spectrum.mean is not None:
                bias = bias + spectrum.mean - basis @ (basis.t() @ spectrum.mean)
            last.bias.copy_(bias)
