"""Groups of channels that must be removed together. Importing this module needs torch.

The dependency graph (Fang et al., "DepGraph", arXiv:2301.12900) is torch-pruning's; its groups are
proposals, which `cut_check` tests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.errors import ChainError, missing_package
from edgepack.passes.network import find_shared_weights, is_transposed
from edgepack.passes.prune.bounded_groups import ENDLESS, proposed_by
from edgepack.passes.prune.cut import Cut, is_channelwise

# Attribute names of attention modules: number of heads, size of a head, size of all heads.
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
HEAD_SIZES = ("attention_head_size", "head_dim", "head_size", "dim_head")
ALL_HEADS = ("all_head_size", "inner_dim", "inner_size", "embed_dim", "dim", "split_size")


@dataclass(frozen=True)
class Slice:
    """Channels of one layer within a group.

    Attributes:
        name: of the layer or parameter.
        side: "outputs", "inputs", or "parameter".
        axis: the axis of a parameter.
        channels: indices of channels of the layer.
        roots: for each of them, the index of the root layer's output channel that it depends on.
    """

    name: str
    side: str
    axis: int
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels of several layers that must be removed together.

    Attributes:
        root: name of the layer whose output channels index the group.
        channels: number of these output channels.
        slices: the channels of all layers, including the root.
        units: smallest removable sets of root channels: single channels, one channel of each group
            of a grouped convolution, or the channels of an attention head.
        heads: True if the units are attention heads.
        sizes: attributes that count heads or their channels: module, attribute, value per unit.
    """

    root: str
    channels: int
    slices: tuple[Slice, ...]
    units: tuple[tuple[int, ...], ...] = ()
    heads: bool = False
    sizes: tuple[tuple[str, str, int], ...] = ()

    @property
    def producers(self) -> tuple[str, ...]:
        """Return the names of the layers whose output channels belong to the group."""
        return tuple(part.name for part in self.slices if part.side == "outputs")

    def cut(self, removed: Sequence[int]) -> Cut:
        """Return the cut that removes some units, by their indices."""
        roots = set().union(*(self.units[unit] for unit in removed))
        result = Cut()
        for part in self.slices:
            channels = {
                channel
                for channel, root in zip(part.channels, part.roots, strict=True)
                if root in roots
            }
            if part.side == "parameter":
                result.parameters[part.name] = (part.axis, channels)
            elif part.side == "outputs":
                result.outputs.setdefault(part.name, set()).update(channels)
            else:
                result.inputs.setdefault(part.name, set()).update(channels)
        remaining = len(self.units) - len(removed)
        for name, attribute, size in self.sizes:
            result.attributes.setdefault(name, {})[attribute] = remaining * size
        return result


@dataclass
class Grouping:
    """Result of the search for groups.

    Attributes:
        groups: the groups that can be pruned.
        skipped: for each layer that cannot, the reason.
    """

    groups: list[Group] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, names: Sequence[str], reason: str) -> None:
        """Record the reason for layers that have none yet."""
        # Several groups may reject the same layer; the first reason is reported.
        for name in names:
            self.skipped.setdefault(name, reason)


def find_groups(module: nn.Module, example: Sequence[torch.Tensor]) -> Grouping:
    """Return the groups that the dependency graph proposes.

    Args:
        module: the network.
        example: the arguments of one call.

    Raises:
        HostError: package-missing.
        ChainError: prune-graph if the network cannot be traced.
    """
    try:
        import torch_pruning
        from torch_pruning.dependency import graph as inner
    except ImportError as error:
        raise missing_package("torch-pruning", "prune", "Pruning channels") from error
    # torch-pruning follows gradient functions, so every parameter of the copy needs a gradient.
    traced = copy.deepcopy(module)
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                traced, [argument.clone() for argument in example],
                forward_fn=lambda network, inputs: network(*inputs),
                output_transform=_differentiable, verbose=False,
            )  # fmt: skip
            proposed, endless = proposed_by(graph, inner)
    except Exception as error:
        raise ChainError(
            "prune-graph",
            "the dependencies between the network's channels cannot be traced",
            why=f"torch-pruning: {type(error).__name__}: {error}",
            hint="prune:unstructured=0.5 or pattern=2:4, which need no dependency graph",
        ) from error
    names = {id(part): name for name, part in traced.named_modules()}
    names |= {id(parameter): name for name, parameter in traced.named_parameters()}
    shared = find_shared_weights(traced)
    grouping = Grouping()
    grouping.skip([names[id(part)] for part in endless], ENDLESS)
    foreign = [name for name, part in traced.named_modules() if is_transposed(part)]
    grouping.skip(foreign, "torch-pruning does not support Conv1D")
    # No channel may belong to two groups: their cuts are made independently of each other.
    occupied: set[tuple[str, str, int]] = set()
    for proposal in proposed:
        group, reason = _read(proposal, graph, names)
        members: set[tuple[str, str, int]] = set()
        for part in group.slices:
            members.update((part.name, part.side, channel) for channel in part.channels)
        dependencies = [dependency for dependency, *_ in proposal.items]
        if not reason and any(_shares(dep.target.module, shared) for dep in dependencies):
            reason = "its channels belong to weights that several layers share"
        if not reason and members & occupied:
            reason = "its channels also belong to another group"
        if not reason:
            group, reason = _in_units(group, traced)
        if reason:
            grouping.skip(group.producers, reason)
        else:
            occupied |= members
            grouping.groups.append(group)
    return grouping


def _differentiable(answer: object) -> tuple[torch.Tensor, ...]:
    """Return the outputs that have a gradient, which are those that torch-pruning can follow."""
    outputs = answer if isinstance(answer, (tuple, list)) else (answer,)
    result = tuple(output for output in outputs if output.grad_fn is not None)
    if not result:
        raise ValueError("no output of the network has a gradient to trace")
    return result


def _shares(part: nn.Module, shared: set[int]) -> bool:
    """Return True if a module or parameter of the graph has shared weights."""
    if not isinstance(part, nn.Module):
        return id(part) in shared
    return any(id(parameter) in shared for parameter in part.parameters(recurse=False))


def _read(group: Any, graph: Any, names: Mapping[int, str]) -> tuple[Group, str]:
    """Convert a group of the graph; return it with the reason why it cannot be pruned, or ""."""
    reason = ""
    slices: dict[tuple[str, str], Slice] = {}
    for item in group.items:
        part = item.dep.target.module
        kind = item.dep.target.type.name
        if kind == "OUTPUT":
            reason = reason or "its channels are an output of the network"
        elif kind in ("LN", "GN"):
            reason = reason or f"a {type(part).__name__} normalizes over all of its channels"
        elif kind in ("MHA", "LSTM"):
            reason = reason or f"a {type(part).__name__} is not pruned"
        if kind not in ("CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "IN", "PRELU", "EMBED",
                        "PARAMETER"):  # fmt: skip
            continue
        # Grouped-query attention shares a key channel among heads, without a single root.
        if any(root is None for root in item.root_idxs):
            reason = reason or "several heads share its channels"
            continue
        side, axis = "parameter", item.dep.target.pruning_dim
        if kind != "PARAMETER":
            side = "outputs" if graph.is_out_channel_pruning_fn(item.dep.handler) else "inputs"
        else:
            axis %= part.ndim
        name = names[id(part)]
        # A layer that the network calls twice occurs twice in the group.
        if (name, side) in slices:
            reason = reason or f"{name} is called more than once"
        slices[name, side] = Slice(name, side, axis, tuple(item.idxs), tuple(item.root_idxs))
    # torch-pruning puts the layer from which the group was traced first.
    root = group.items[0].dep.target.module
    channels = graph.get_out_channels(root)
    return Group(names[id(root)], channels, tuple(slices.values())), reason


def _in_units(group: Group, module: nn.Module) -> tuple[Group, str]:
    """Return the group with its units, and the reason if it has none.

    For 8 channels that feed a convolution in 2 groups, the units are (0, 4), (1, 5), (2, 6) and
    (3, 7): each takes one channel from both groups, so that the groups stay equal in size.
    """
    layers = [module.get_submodule(s.name) for s in group.slices if s.side != "parameter"]
    groups = [
        layer.groups
        for layer in layers
        if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_channelwise(layer)
    ]
    if not any(part.side == "inputs" for part in group.slices):
        return group, "no layer reads its channels, they are an output of the network"
    # Every grouped convolution must keep groups of equal size, so the units respect all of them.
    step = math.lcm(*groups)
    if group.channels % step:
        return group, "the groups of its convolutions have incompatible sizes"
    size, sizes = _heads(group, module)
    if size:
        units = [range(start, start + size) for start in range(0, group.channels, size)]
    else:
        # One channel of every group of a grouped convolution.
        period = group.channels // step
        units = [range(first, group.channels, period) for first in range(period)]
    if len(units) < 2:
        return group, "it has a single channel or head"
    members = tuple(tuple(unit) for unit in units)
    return replace(group, units=members, heads=bool(size), sizes=sizes), ""


def _heads(group: Group, module: nn.Module) -> tuple[int, tuple[tuple[str, str, int], ...]]:
    """Return the channels of an attention head (0 without heads) and the attributes to adjust.

    With num_heads=12 and 768 channels a head has 64; the result is (64, ((name, "num_heads", 1),
    (name, "embed_dim", 64))): the values per head of the attributes to update after a cut.
    """
    matrices = [n for n in group.producers if isinstance(module.get_submodule(n), nn.Linear)]
    parents = {name.rpartition(".")[0] for name in matrices}
    # Attention has queries and keys (and values) in one parent; a single Linear has no heads.
    if len(matrices) < 2 or len(parents) > 1:
        return 0, ()
    name = parents.pop()
    parent = module.get_submodule(name)

    def read_count(attribute: str) -> int:
        """Return the attribute if it divides the channels, else 0."""
        value = getattr(parent, attribute, 0)
        if isinstance(value, int) and value > 1 and group.channels % value == 0:
            return value
        return 0

    numbers = [attribute for attribute in HEADS if read_count(attribute)]
    sizes = [read_count(attribute) for attribute in HEAD_SIZES if read_count(attribute)]
    if not numbers and not sizes:
        return 0, ()
    size = sizes[0] if sizes else group.channels // read_count(numbers[0])
    updates = [(name, a, 1) for a in numbers if read_count(a) == group.channels // size]
    updates += [(name, a, size) for a in ALL_HEADS if read_count(a) == group.channels]
    return size, tuple(updates)
