"""Groups of channels that must be removed together. Importing this module needs torch.

The dependency graph (Fang et al., "DepGraph", arXiv:2301.12900) is torch-pruning's; its groups are
proposals, which `cut_check` tests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.errors import ChainError, missing_package
from edgepack.passes.network import find_shared_weights, is_transposed
from edgepack.passes.prune.bounded_groups import ENDLESS, propose_groups
from edgepack.passes.prune.cut import Cut, is_channelwise

if TYPE_CHECKING:
    from torch_pruning.dependency import DependencyGraph
    from torch_pruning.dependency import Group as ProposedGroup

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

    def select_channels(self, roots: set[int]) -> set[int]:
        """Return the channels that depend on some channels of the root."""
        channels = set()
        for channel, root in zip(self.channels, self.roots, strict=True):
            if root in roots:
                channels.add(channel)
        return channels


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

    @property
    def members(self) -> set[tuple[str, str, int]]:
        """Return layer, side and index of every channel of the group."""
        members = set()
        for part in self.slices:
            for channel in part.channels:
                members.add((part.name, part.side, channel))
        return members

    def cut(self, removed: Sequence[int]) -> Cut:
        """Return the cut that removes some units, by their indices.

        If unit 1 is root channel 1, it takes channel 1 of the root, and the inputs 49 to 97 of a
        Linear that reads the root behind a flatten of a 7 x 7 window.
        """
        roots: set[int] = set()
        for unit in removed:
            roots.update(self.units[unit])
        result = Cut()
        for part in self.slices:
            channels = part.select_channels(roots)
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
            proposed, endless = propose_groups(graph, inner)
    except Exception as error:
        raise ChainError(
            "prune-graph",
            "the dependencies between the network's channels cannot be traced",
            why=f"torch-pruning: {type(error).__name__}: {error}",
            hint="prune:unstructured=0.5 or pattern=2:4, which need no dependency graph",
        ) from error
    names = _name_parts(traced)
    shared = find_shared_weights(traced)
    grouping = Grouping()
    for part in endless:
        grouping.skip([names[id(part)]], ENDLESS)
    for name, part in traced.named_modules():
        if is_transposed(part):
            grouping.skip([name], "torch-pruning does not support Conv1D")
    # No channel may belong to two groups: their cuts are made independently of each other.
    occupied: set[tuple[str, str, int]] = set()
    for proposal in proposed:
        group, reason = _read_group(proposal, graph, names)
        members = group.members
        if not reason and any(_shares(item.dep.target.module, shared) for item in proposal.items):
            reason = "its channels belong to weights that several layers share"
        if not reason and members & occupied:
            reason = "its channels also belong to another group"
        if not reason:
            group, reason = _divide_into_units(group, traced)
        if reason:
            grouping.skip(group.producers, reason)
        else:
            occupied |= members
            grouping.groups.append(group)
    return grouping


def _name_parts(module: nn.Module) -> dict[int, str]:
    """Return the names of a network's modules and parameters by id."""
    names = {}
    for name, part in module.named_modules():
        names[id(part)] = name
    for name, parameter in module.named_parameters():
        names[id(parameter)] = name
    return names


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


def _read_group(
    group: ProposedGroup, graph: DependencyGraph, names: Mapping[int, str]
) -> tuple[Group, str]:
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
        if None in item.root_idxs:
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


def _divide_into_units(group: Group, module: nn.Module) -> tuple[Group, str]:
    """Return the group with its units, and the reason if it has none.

    For 8 channels that feed a convolution in 2 groups, the units are (0, 4), (1, 5), (2, 6) and
    (3, 7): each takes one channel from both groups, so that the groups stay equal in size.
    """
    if not any(part.side == "inputs" for part in group.slices):
        return group, "no layer reads its channels, they are an output of the network"
    # Every grouped convolution must keep groups of equal size, so the units respect all of them.
    # With convolutions in 2 and in 3 groups a unit has 6 channels, one of each sixth.
    step = 1
    for part in group.slices:
        if part.side != "parameter":
            layer = module.get_submodule(part.name)
            if isinstance(layer, _ConvNd) and not is_channelwise(layer):
                step = math.lcm(step, layer.groups)
    if group.channels % step:
        return group, "the groups of its convolutions have incompatible sizes"
    size, sizes = _find_heads(group, module)
    units = []
    if size:
        for start in range(0, group.channels, size):
            units.append(tuple(range(start, start + size)))
    else:
        # One channel of every group of a grouped convolution.
        period = group.channels // step
        for first in range(period):
            units.append(tuple(range(first, group.channels, period)))
    if len(units) < 2:
        return group, "it has a single channel or head"
    return replace(group, units=tuple(units), heads=bool(size), sizes=sizes), ""


def _find_heads(group: Group, module: nn.Module) -> tuple[int, tuple[tuple[str, str, int], ...]]:
    """Return the channels of an attention head (0 without heads) and the attributes to adjust.

    With num_heads=12 and 768 channels a head has 64; the result is (64, ((name, "num_heads", 1),
    (name, "embed_dim", 64))): the values per head of the attributes to update after a cut.
    """
    parents = []
    for producer in group.producers:
        if isinstance(module.get_submodule(producer), nn.Linear):
            parents.append(producer.rpartition(".")[0])
    # Attention has queries and keys (and values) in one parent; a single Linear has no heads.
    if len(parents) < 2 or len(set(parents)) > 1:
        return 0, ()
    name = parents[0]
    parent = module.get_submodule(name)

    def read_count(attribute: str) -> int:
        """Return the attribute if it divides the channels, else 0."""
        value = getattr(parent, attribute, 0)
        if isinstance(value, int) and value > 1 and group.channels % value == 0:
            return value
        return 0

    # The size of a head, where the module states it, is safer than the number of heads: keys and
    # values of grouped-query attention have fewer heads than queries, of the same size.
    size = next(filter(None, map(read_count, HEAD_SIZES)), 0)
    if not size:
        number = next(filter(None, map(read_count, HEADS)), 0)
        if not number:
            return 0, ()
        size = group.channels // number
    updates = []
    for attribute in HEADS:
        if read_count(attribute) == group.channels // size:
            updates.append((name, attribute, 1))
    for attribute in ALL_HEADS:
        if read_count(attribute) == group.channels:
            updates.append((name, attribute, size))
    return size, tuple(updates)
