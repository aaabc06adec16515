"""Slices of layers to remove, and their removal. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

if TYPE_CHECKING:
    from edgepack.passes.module import Recipe


class CutError(Exception):
    """Raised for channels that cannot be removed; the message is the reason."""


@dataclass
class Cut:
    """Slices to remove from a network, by their indices before the removal.

    Attributes:
        outputs: output channels to remove, by layer name.
        inputs: input channels to remove, by layer name.
        parameters: axis and indices to remove, by name of a parameter outside supported layers.
        attributes: new values of the sizes that a module stores as attributes, by module name.
    """

    outputs: dict[str, set[int]] = field(default_factory=dict)
    inputs: dict[str, set[int]] = field(default_factory=dict)
    parameters: dict[str, tuple[int, set[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, extra: Cut) -> None:
        """Add the slices of another cut to this one."""
        for target, additions in ((self.outputs, extra.outputs), (self.inputs, extra.inputs)):
            for name, channels in additions.items():
                target.setdefault(name, set()).update(channels)
        # A parameter is cut along one axis only, so its indices from several groups add up.
        for name, (axis, channels) in extra.parameters.items():
            self.parameters.setdefault(name, (axis, set()))[1].update(channels)
        for name, values in extra.attributes.items():
            self.attributes.setdefault(name, {}).update(values)

    def to_json(self) -> Recipe:
        """Return the JSON form that a recipe stores.

        For example {"outputs": {"conv1": [3, 5]}, "inputs": {"conv2": [3, 5]}, "parameters":
        {"scale": [0, [3, 5]]}, "attributes": {"attention": {"num_heads": 3}}}.
        """
        parameters = {}
        for name, (axis, channels) in self.parameters.items():
            parameters[name] = [axis, sorted(channels)]
        return {
            "outputs": {name: sorted(channels) for name, channels in self.outputs.items()},
            "inputs": {name: sorted(channels) for name, channels in self.inputs.items()},
            "parameters": parameters,
            "attributes": self.attributes,
        }

    @classmethod
    def from_json(cls, recipe: Recipe) -> Cut:
        """Read the cut of a recipe; an empty recipe removes nothing."""
        result = cls()
        for name, channels in recipe.get("outputs", {}).items():
            result.outputs[name] = set(channels)
        for name, channels in recipe.get("inputs", {}).items():
            result.inputs[name] = set(channels)
        for name, (axis, channels) in recipe.get("parameters", {}).items():
            result.parameters[name] = (axis, set(channels))
        for name, values in recipe.get("attributes", {}).items():
            result.attributes[name] = dict(values)
        return result


def cut(module: nn.Module, slices: Cut) -> None:
    """Remove slices from a network, in place. Raises CutError for an unsupported layer."""
    # Both sides of a layer at once: a channelwise layer loses the union of both only once.
    for name in dict.fromkeys((*slices.outputs, *slices.inputs)):
        layer = module.get_submodule(name)
        _cut_layer(layer, slices.outputs.get(name, set()), slices.inputs.get(name, set()))
    for name, (axis, channels) in slices.parameters.items():
        parent, _, last = name.rpartition(".")
        _keep(module.get_submodule(parent), last, axis, channels)
    for name, values in slices.attributes.items():
        for attribute, value in values.items():
            setattr(module.get_submodule(name), attribute, value)


def _cut_layer(layer: nn.Module, outputs: set[int], inputs: set[int]) -> None:
    """Remove channels of one layer, and adjust its size attributes."""
    if is_parametrized(layer):
        raise CutError(f"the weights of a {type(layer).__name__} are computed from others")
    if is_channelwise(layer):
        # Input and output channels are the same ones here, so either side removes both.
        _cut_channelwise(layer, outputs | inputs)
    elif isinstance(layer, nn.PReLU):
        # A single slope applies to all channels and remains as it is.
        if layer.num_parameters > 1:
            _keep(layer, "weight", 0, outputs | inputs)
            layer.num_parameters = len(layer.weight)
    elif isinstance(layer, nn.Embedding):
        _keep(layer, "weight", 1, outputs | inputs)
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, nn.Linear):
        _cut_matrix(layer, outputs, inputs, (0, 1))
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd):
        _cut_convolution(layer, outputs, inputs)
    else:
        raise CutError(f"channels of a {type(layer).__name__} cannot be removed")


def _cut_channelwise(layer: nn.Module, channels: set[int]) -> None:
    """Remove channels of a batch norm, an instance norm or a channelwise convolution."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(layer, name, 0, channels)
    for name in ("num_features", "in_channels", "out_channels", "groups"):
        if hasattr(layer, name):
            setattr(layer, name, getattr(layer, name) - len(channels))


def _cut_convolution(layer: nn.Module, outputs: set[int], inputs: set[int]) -> None:
    """Remove channels of a convolution that mixes its inputs."""
    # The weight is [outputs, inputs, window], or [inputs, outputs, window] if transposed.
    axes = (0, 1)
    if isinstance(layer, _ConvTransposeNd):
        if layer.groups > 1:
            raise CutError("a transposed convolution in groups is not pruned")
        axes = (1, 0)
    _cut_matrix(layer, outputs, to_group_indices(layer, inputs), axes)
    layer.out_channels -= len(outputs)
    layer.in_channels -= len(inputs)
    if layer.groups > 1 and layer.out_channels % layer.groups:
        raise CutError("its groups would differ in size")


def is_channelwise(layer: nn.Module) -> bool:
    """Return True if each output channel depends on exactly one input channel."""
    if isinstance(layer, _ConvNd):
        return bool(layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels)
    return isinstance(layer, (_BatchNorm, _InstanceNorm))


def to_group_indices(layer: nn.Module, inputs: set[int]) -> set[int]:
    """Return input channels of a grouped convolution as indices within one group.

    The weight [outputs, inputs / groups, window] has one input axis for all groups, so every group
    must lose the same channels: with 8 inputs in 2 groups, {1, 5} is index 1 of both and gives {1},
    while {1, 6} raises CutError.
    """
    if layer.groups == 1:
        return inputs
    size = layer.in_channels // layer.groups
    local = {channel % size for channel in inputs}
    if len(local) * layer.groups != len(inputs):
        raise CutError("its groups would lose different channels")
    return local


def _cut_matrix(
    layer: nn.Module, outputs: set[int], inputs: set[int], axes: tuple[int, int]
) -> None:
    """Remove rows and columns of a weight, and the bias of the removed outputs."""
    _keep(layer, "weight", axes[0], outputs)
    _keep(layer, "bias", 0, outputs)
    _keep(layer, "weight", axes[1], inputs)


def _keep(layer: nn.Module, name: str, axis: int, removed: Iterable[int]) -> None:
    """Replace a parameter or buffer by itself without some slices along an axis."""
    before = getattr(layer, name, None)
    removed = set(removed)
    if before is None or not removed:
        return
    # Sorted, since sets have no order: the remaining channels must keep theirs.
    remaining = sorted(set(range(before.shape[axis])) - removed)
    if max(removed) >= before.shape[axis]:
        raise CutError(f"channel {max(removed)} is out of range, it has {before.shape[axis]}")
    if not remaining:
        raise CutError("no channel would remain")
    after = before.detach().index_select(axis, torch.tensor(remaining))
    if isinstance(before, nn.Parameter):
        after = nn.Parameter(after, requires_grad=before.requires_grad)
    setattr(layer, name, after)
