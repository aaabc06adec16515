"""Which channels of which layers go together. Only importable where torch is.

The dependency graph (Fang et al., "DepGraph", arXiv:2301.12900) is torch-pruning's; what it says
is taken as a proposal, which `trial` tries out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.chain.network import is_transposed, shared_weights
from edgepack.chain.prune.cut import Cut, is_channelwise
from edgepack.chain.prune.follow import ENDLESS, proposed_by
from edgepack.errors import ChainError, missing_package

# How attention modules name the number of their heads, the size of one, and that of all.
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
HEAD_SIZES = ("attention_head_size", "head_dim", "head_size", "dim_head")
ALL_HEADS = ("all_head_size", "inner_dim", "inner_size", "embed_dim", "dim", "split_size")


@dataclass(frozen=True)
class Slice:
    """Channels of one layer that belong to a group's.

    Attributes:
        name: of the layer or parameter.
        side: "outputs", "inputs", or "parameter".
        axis: of a parameter.
        channels: of the layer.
        roots: the group's channel that each belongs to.
    """

    name: str
    side: str
    axis: int
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels of several layers that go together.

    Attributes:
        root: the layer whose output channels they are counted by.
        channels: number of them.
        slices: of all layers, that one too.
        units: channels that only go together: single ones, one of every group, or heads.
        heads: whether the units are attention heads.
        sizes: attributes that count heads or their channels: module, attribute, value of a unit.
    """

    root: str
    channels: int
    slices: tuple[Slice, ...]
    units: tuple[tuple[int, ...], ...] = ()
    heads: bool = False
    sizes: tuple[tuple[str, str, int], ...] = ()

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers whose output channels they are."""
        return tuple(part.name for part in self.slices if part.side == "outputs")

    def cut(self, gone: Sequence[int]) -> Cut:
        """What is taken out where some units go, by their positions."""
        roots = {channel for unit in gone for channel in self.units[unit]}
        found = Cut()
        for part in self.slices:
            channels = {
                channel
                for channel, root in zip(part.channels, part.roots, strict=True)
                if root in roots
            }
            if part.side == "parameter":
                found.parameters[part.name] = (part.axis, channels)
            else:
                side = found.outputs if part.side == "outputs" else found.inputs
                side.setdefault(part.name, set()).update(channels)
        left = len(self.units) - len(gone)
        for name, attribute, size in self.sizes:
            found.attributes.setdefault(name, {})[attribute] = left * size
        return found


@dataclass
class Found:
    """The groups of a network, and by layer why others cannot be pruned."""

    groups: list[Group] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def leave(self, names: Sequence[str], reason: str) -> None:
        """Note the reason for layers that have none yet."""
        for name in names:
            self.left.setdefault(name, reason)


def find_groups(module: Any, example: Sequence[Any]) -> Found:
    """The groups that the dependency graph proposes.

    Args:
        module: the network.
        example: the arguments of one call.

    Raises:
        HostError: package-missing.
        ChainError: prune-graph where the network cannot be traced.
    """
    try:
        import torch_pruning
        from torch_pruning.dependency import graph as inner
    except ImportError as error:
        raise missing_package("torch-pruning", "prune", "Pruning channels") from error
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
            "it cannot be told which channels of the network go together",
            why=f"torch-pruning: {type(error).__name__}: {error}",
            hint="prune:unstructured=0.5 or pattern=2:4 asks nothing of the network's structure",
        ) from error
    names = {id(part): name for name, part in traced.named_modules()}
    names |= {id(parameter): name for name, parameter in traced.named_parameters()}
    shared = shared_weights(traced)
    found = Found()
    found.leave([names[id(part)] for part in endless], ENDLESS)
    foreign = [name for name, part in traced.named_modules() if is_transposed(part)]
    found.leave(foreign, "torch-pruning does not know a Conv1D")
    taken: set[tuple[str, str, int]] = set()
    for group in proposed:
        read, reason = _read(group, graph, names)
        where = {(s.name, s.side, channel) for s in read.slices for channel in s.channels}
        parts = [graph_part for graph_part, *_ in group.items]
        if not reason and any(_shares(part.target.module, shared) for part in parts):
            reason = "its channels are those of weights that several layers share"
        if not reason and where & taken:
            reason = "its channels go with those of another group"
        if not reason:
            read, reason = _in_units(read, traced)
        if reason:
            found.leave(read.producers, reason)
        else:
            taken |= where
            found.groups.append(read)
    return found


def _differentiable(answer: Any) -> tuple[Any, ...]:
    outputs = answer if isinstance(answer, (tuple, list)) else (answer,)
    found = tuple(output for output in outputs if output.grad_fn is not None)
    if not found:
        raise ValueError("no output of the network has a gradient, from which it tells them")
    return found


def _shares(part: Any, shared: set[int]) -> bool:
    parameters = part.parameters(recurse=False) if isinstance(part, nn.Module) else (part,)
    return any(id(parameter) in shared for parameter in parameters)


def _read(group: Any, graph: Any, names: Mapping[int, str]) -> tuple[Group, str]:
    """A group of the graph with names for layers, and why it is bound, if it is."""
    reason = ""
    slices: dict[tuple[str, str], Slice] = {}
    for item in group.items:
        part = item.dep.target.module
        kind = item.dep.target.type.name
        if kind == "OUTPUT":
            reason = reason or "its channels are the network's answer"
        elif kind in ("LN", "GN"):
            reason = reason or f"a {type(part).__name__} reads all of its channels together"
        elif kind in ("MHA", "LSTM"):
            reason = reason or f"a {type(part).__name__} is not pruned"
        if kind not in ("CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "IN", "PRELU", "EMBED",
                        "PARAMETER"):  # fmt: skip
            continue
        if any(root is None for root in item.root_idxs):
            reason = reason or "several heads share its channels"
            continue
        side, axis = "parameter", item.dep.target.pruning_dim
        if kind != "PARAMETER":
            side = "outputs" if graph.is_out_channel_pruning_fn(item.dep.handler) else "inputs"
        else:
            axis %= part.ndim
        name = names[id(part)]
        # The same layer is met twice where the network calls it twice.
        if (name, side) in slices:
            reason = reason or f"{name} is called more than once"
        slices[name, side] = Slice(name, side, axis, tuple(item.idxs), tuple(item.root_idxs))
    root = group.items[0].dep.target.module
    channels = graph.get_out_channels(root)
    return Group(names[id(root)], channels, tuple(slices.values())), reason


def _in_units(group: Group, module: Any) -> tuple[Group, str]:
    """The group with its units, or why it has none."""
    layers = [module.get_submodule(s.name) for s in group.slices if s.side != "parameter"]
    groups = [
        layer.groups
        for layer in layers
        if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_channelwise(layer)
    ]
    if not any(part.side == "inputs" for part in group.slices):
        return group, "no layer reads its channels, which are a part of the answer"
    step = math.lcm(*groups)
    if group.channels % step:
        return group, "the groups of its convolutions do not fit each other"
    size, sizes = _heads(group, module)
    if size:
        units = [range(start, start + size) for start in range(0, group.channels, size)]
    else:
        # One channel of every group of a grouped convolution.
        period = group.channels // step
        units = [range(first, group.channels, period) for first in range(period)]
    if len(units) < 2:
        return group, "it has one channel, or one head"
    made = Group(
        group.root, group.channels, group.slices, tuple(tuple(u) for u in units), bool(size), sizes
    )
    return made, ""


def _heads(group: Group, module: Any) -> tuple[int, tuple[tuple[str, str, int], ...]]:
    """Channels of one attention head, 0 where there are none; and attributes that count them."""
    matrices = [n for n in group.producers if isinstance(module.get_submodule(n), nn.Linear)]
    parents = {name.rpartition(".")[0] for name in matrices}
    if len(matrices) < 2 or len(parents) > 1:
        return 0, ()
    name = parents.pop()
    parent = module.get_submodule(name)

    def counts(attribute: str) -> int:
        value = getattr(parent, attribute, 0)
        whole = isinstance(value, int) and value > 1 and group.channels % value == 0
        return value if whole else 0

    numbers = [attribute for attribute in HEADS if counts(attribute)]
    sizes = [counts(attribute) for attribute in HEAD_SIZES if counts(attribute)]
    if not numbers and not sizes:
        return 0, ()
    size = sizes[0] if sizes else group.channels // counts(numbers[0])
    kept = [(name, a, 1) for a in numbers if counts(a) == group.channels // size]
    kept += [(name, a, size) for a in ALL_HEADS if counts(a) == group.channels]
    return size, tuple(kept)
