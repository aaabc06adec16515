"""Test of cuts on the network itself. Importing this module needs torch.

Zero weights on a channel have the same effect as its absence. So a network without some channels
must give the same outputs as the complete network with zero weights in the layers that read those
channels. That must hold for any weights; they are perturbed randomly here, so that weights that
happen to be zero cannot hide a mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepack.passes.network import are_outputs_equal, run_network
from edgepack.passes.prune.cut import Cut, CutError, cut, is_channelwise, to_group_indices

if TYPE_CHECKING:
    from torch import nn

# Permitted difference of the outputs relative to the largest value: the order of sums differs.
TOLERANCE = 1e-4
# Standard deviation of the perturbation: relative to the mean magnitude, and its minimum, for
# parameters that are all zero.
PERTURBATION, MIN_PERTURBATION = 0.1, 1e-3


class Trial:
    """Tests cuts on copies of a network.

    Args:
        module: the network.
        example: the arguments of one call.
        seed: of the perturbation.
    """

    def __init__(self, module: nn.Module, example: Sequence[torch.Tensor], seed: int = 0) -> None:
        self.example = example
        self.module = copy.deepcopy(module)
        generator = torch.Generator().manual_seed(seed)
        # Relative to the mean magnitude, so that the activations keep their order of magnitude.
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.is_floating_point() and parameter.numel():
                    size = PERTURBATION * float(parameter.abs().mean()) + MIN_PERTURBATION
                    parameter += size * torch.randn(parameter.shape, generator=generator)

    def reject(self, slices: Cut) -> str:
        """Return the reason for which the slices cannot be removed; "" if they can.

        For the cut of channel 3 of conv1, which conv2 reads, the network without both is compared
        with one in which conv2's weights for channel 3 are zero. If a skip connection reads
        channel 3 too, the outputs differ.
        """
        masked, pruned = copy.deepcopy(self.module), copy.deepcopy(self.module)
        try:
            cut(pruned, slices)
            _blind(masked, slices)
        except CutError as error:
            return str(error)
        expected_outputs = run_network(masked, self.example)
        # Outputs without a finite value would pass any comparison of the finite ones.
        for expected_output in expected_outputs:
            if expected_output.numel() and not bool(expected_output.isfinite().any()):
                return "it cannot be tested: with perturbed weights the output is not finite"
        try:
            outputs = run_network(pruned, self.example)
        except Exception as error:  # noqa: BLE001  whatever a forward raises with another shape
            # torch puts the cause last; an error without a message has its type alone.
            lines = str(error).strip().splitlines() or [repr(error)]
            return f"the network fails with fewer channels ({lines[-1]})"
        for expected_output, output in zip(expected_outputs, outputs, strict=True):
            if expected_output.shape != output.shape:
                return "the shape of the network's output would change"
            if not are_outputs_equal(expected_output, output, TOLERANCE):
                return "its channels are also read by parts of the network other than its layers"
        return ""


def _blind(module: nn.Module, slices: Cut) -> None:
    """Zero the weights with which layers read the removed channels."""
    with torch.no_grad():
        for name, channels in slices.inputs.items():
            layer = module.get_submodule(name)
            if not channels or is_channelwise(layer):
                continue
            # The weight is [outputs, inputs, window], or [inputs, outputs, window] if transposed.
            axis = 0 if isinstance(layer, _ConvTransposeNd) else 1
            if isinstance(layer, _ConvNd):
                channels = to_group_indices(layer, channels)
            layer.weight.index_fill_(axis, torch.tensor(sorted(channels)), 0)
