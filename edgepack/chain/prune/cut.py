"""The slices of layers that go, and how they are taken out. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized


class Bound(Exception):
    """Channels that cannot be taken out; the message is the reason."""


@dataclass
class Cut:
    """What is taken out of a network, counted as it was before.

    Attributes:
        outputs: output channels that go, by name of the layer.
        inputs: input channels that go, by name of the layer.
        parameters: by name of a parameter that belongs to no known layer, its axis and what goes.
        attributes: by name of a module, the sizes that it keeps as attributes, and their values.
    """

    outputs: dict[str, set[int]] = field(default_factory=dict)
    inputs: dict[str, set[int]] = field(default_factory=dict)
    parameters: dict[str, tuple[int, set[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, other: Cut) -> None:
        """Take that out as well."""
        for mine, others in ((self.outputs, other.outputs), (self.inputs, other.inputs)):
            for name, channels in others.items():
                mine.setdefault(name, set()).update(channels)
        for name, (axis, channels) in other.parameters.items():
            self.parameters.setdefault(name, (axis, set()))[1].update(channels)
        for name, values in other.attributes.items():
            self.attributes.setdefault(name, {}).update(values)

    def to_json(self) -> dict[str, Any]:
        """As the recipe holds it."""
        return {
            "outputs": {name: sorted(found) for name, found in self.outputs.items()},
            "inputs": {name: sorted(found) for name, found in self.inputs.items()},
            "parameters": {n: [axis, sorted(x)] for n, (axis, x) in self.parameters.items()},
            "attributes": self.attributes,
        }

    @classmethod
    def from_json(cls, recipe: Mapping[str, Any]) -> Cut:
        """Of a recipe; nothing of an empty one."""
        return cls(
            {name: set(found) for name, found in recipe.get("outputs", {}).items()},
            {name: set(found) for name, found in recipe.get("inputs", {}).items()},
            {n: (axis, set(found)) for n, (axis, found) in recipe.get("parameters", {}).items()},
            {name: dict(values) for name, values in recipe.get("attributes", {}).items()},
        )


def cut(module: Any, what: Cut) -> None:
    """Take slices out of a network. Raises Bound where a layer is of an unknown kind."""
    for name in dict.fromkeys((*what.outputs, *what.inputs)):
        layer = module.get_submodule(name)
        _cut_layer(layer, what.outputs.get(name, set()), what.inputs.get(name, set()))
    for name, (axis, channels) in what.parameters.items():
        parent, _, last = name.rpartition(".")
        _keep(module.get_submodule(parent), last, axis, channels)
    for name, values in what.attributes.items():
        for attribute, value in values.items():
            setattr(module.get_submodule(name), attribute, value)


def _cut_layer(layer: Any, outputs: set[int], inputs: set[int]) -> None:
    if is_parametrized(layer):
        raise Bound(f"the weights of a {type(layer).__name__} are computed from others")
    if is_channelwise(layer):
        # What comes in goes out: both are the same channels.
        channels = outputs | inputs
        for name in ("weight", "bias", "running_mean", "running_var"):
            _keep(layer, name, 0, channels)
        for name in ("num_features", "in_channels", "out_channels", "groups"):
            if hasattr(layer, name):
                setattr(layer, name, getattr(layer, name) - len(channels))
    elif isinstance(layer, nn.PReLU):
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
        transposed = isinstance(layer, _ConvTransposeNd)
        if transposed and layer.groups > 1:
            raise Bound("a transposed convolution in groups is not pruned")
        _cut_matrix(layer, outputs, within(layer, inputs), (1, 0) if transposed else (0, 1))
        layer.out_channels -= len(outputs)
        layer.in_channels -= len(inputs)
        if layer.groups > 1 and layer.out_channels % layer.groups:
            raise Bound("its groups would no longer be of one size")
    else:
        raise Bound(f"channels cannot be taken out of a {type(layer).__name__}")


def is_channelwise(layer: Any) -> bool:
    """Whether every output channel is one input channel's alone."""
    if isinstance(layer, _ConvNd):
        return bool(layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels)
    return isinstance(layer, (_BatchNorm, _InstanceNorm))


def within(layer: Any, inputs: set[int]) -> set[int]:
    """Input channels of a grouped convolution, counted within a group: in each the same.

    Raises Bound where they are not.
    """
    if layer.groups == 1:
        return inputs
    size = layer.in_channels // layer.groups
    local = {channel % size for channel in inputs}
    if len(local) * layer.groups != len(inputs):
        raise Bound("its groups would lose different channels")
    return local


def _cut_matrix(layer: Any, outputs: set[int], inputs: set[int], axes: tuple[int, int]) -> None:
    _keep(layer, "weight", axes[0], outputs)
    _keep(layer, "bias", 0, outputs)
    _keep(layer, "weight", axes[1], inputs)


def _keep(layer: Any, name: str, axis: int, gone: Iterable[int]) -> None:
    """Put a parameter or buffer without some of its slices in its own place."""
    before = getattr(layer, name, None)
    gone = set(gone)
    if before is None or not gone:
        return
    kept = [channel for channel in range(before.shape[axis]) if channel not in gone]
    if max(gone) >= before.shape[axis]:
        raise Bound(f"it is told to lose channel {max(gone)} of {before.shape[axis]}")
    if not kept:
        raise Bound("nothing of it would be left")
    after = before.detach().index_select(axis, torch.tensor(kept))
    if isinstance(before, nn.Parameter):
        after = nn.Parameter(after, requires_grad=before.requires_grad)
    setattr(layer, name, after)
