"""Whether channels can really go: tried out, on the network itself. Only importable where torch is.

A channel that the layers after it read with weights of zero is not there for them. So a network
without some channels must answer as the whole one does whose readers of those channels are zero:
for any weights, which are stirred here, so that none of them hides a mistake by being zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepack.chain.network import alike, ask
from edgepack.chain.prune.cut import Bound, Cut, cut, is_channelwise, within

# How far the two answers may lie from each other, of the largest value: rounding in another order.
TOLERANCE = 1e-4
# How far weights are stirred, of their mean size, and at least.
STIR, LEAST = 0.1, 1e-3


class Trial:
    """Tries cuts on copies of a network.

    Args:
        module: the network.
        example: the arguments of one call.
        seed: of the stirring.
    """

    def __init__(self, module: Any, example: Sequence[Any], seed: int = 0) -> None:
        self.example = example
        self.module = copy.deepcopy(module)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.is_floating_point() and parameter.numel():
                    size = STIR * float(parameter.abs().mean()) + LEAST
                    parameter += size * torch.randn(parameter.shape, generator=generator)

    def reason(self, what: Cut) -> str:
        """Why that cannot be taken out; "" where it can."""
        whole, less = copy.deepcopy(self.module), copy.deepcopy(self.module)
        try:
            cut(less, what)
            _blind(whole, what)
        except Bound as error:
            return str(error)
        expected = ask(whole, self.example)
        if not all(bool(one.isfinite().any()) for one in expected if one.numel()):
            return "it cannot be tried out: with other weights the answer is no number"
        try:
            answer = ask(less, self.example)
        except Exception as error:  # noqa: BLE001  whatever a forward raises with another shape
            words = str(error).strip().splitlines()
            return f"the network does not run with fewer ({words[-1] if words else error!r})"
        for one, other in zip(expected, answer, strict=True):
            if one.shape != other.shape:
                return "the network's answer would have another shape"
            if not alike(one, other, TOLERANCE):
                return "other parts of the network read its channels than those that weigh them"
        return ""


def _blind(module: Any, what: Cut) -> None:
    """Make the weights zero with which layers read those channels."""
    with torch.no_grad():
        for name, channels in what.inputs.items():
            layer = module.get_submodule(name)
            if not channels or is_channelwise(layer):
                continue
            axis = 0 if isinstance(layer, _ConvTransposeNd) else 1
            if isinstance(layer, _ConvNd):
                channels = within(layer, channels)
            layer.weight.index_fill_(axis, torch.tensor(sorted(channels)), 0)
