"""Groups of channels that must be removed together. Importing this module needs torch.

The dependency graph (Fang et al., "DepGraph", arXiv:2301.12900) is torch-pruning's; its groups are
proposals, which `cut_check` tests.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepack.errors import ChainError, missing_package
from edgepack.passes.network import find_shared_weights, is_transposed
from edgepack.passes.prune.bounded_groups import ENDLESS, propose_groups
from edgepack.passes.prune.group import Group, Slice
from edgepack.passes.prune.units import divide_into_units

if TYPE_CHECKING:
    from torch_pruning.dependency import DependencyGraph
    from torch_pruning.dependency import Group as ProposedGroup

# torch-pruning's names of the kinds of layers that have slices in a cut.
KINDS = ("CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "IN", "PRELU", "EMBED", "PARAMETER")


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
    # torch-pruning follows gradient functions, so every parameter of the copy needs a gradient.
    traced = copy.deepcopy(module)
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    graph, proposals, endless = _trace_dependencies(traced, example)
    names = _name_parts(traced)
    shared = find_shared_weights(traced)
    grouping = Grouping()
    _skip_unsupported(grouping, traced, [names[id(part)] for part in endless])
    # No channel may belong to two groups: their cuts are made independently of each other.
    occupied: set[tuple[str, str, int]] = set()
    for proposal in proposals:
        group, reason = _read_group(proposal, graph, names)
        if not reason and any(_shares(item.dep.target.module, shared) for item in proposal.items):
            reason = "its channels belong to weights that several layers share"
        if not reason and group.members & occupied:
            reason = "its channels also belong to another group"
        if not reason:
            group, reason = divide_into_units(group, traced)
        if reason:
            grouping.skip(group.producers, reason)
        else:
            occupied |= group.members
            grouping.groups.append(group)
    return grouping


def _skip_unsupported(grouping: Grouping, network: nn.Module, endless: Sequence[str]) -> None:
    """Record the reasons for layers that torch-pruning proposes no group for."""
    grouping.skip(endless, ENDLESS)
    for name, part in network.named_modules():
        if is_transposed(part):
            grouping.skip([name], "torch-pruning does not support Conv1D")


def _trace_dependencies(
    network: nn.Module, example: Sequence[torch.Tensor]
) -> tuple[DependencyGraph, list[ProposedGroup], list[nn.Module]]:
    """Return the dependency graph of a network, and what `propose_groups` returns.

    Raises HostError package-missing, ChainError prune-graph.
    """
    try:
        import torch_pruning
        from torch_pruning.dependency import graph as inner
    except ImportError as error:
        raise missing_package("torch-pruning", "prune", "Pruning channels") from error
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                network, [argument.clone() for argument in example],
                forward_fn=lambda network, inputs: network(*inputs),
                output_transform=_select_differentiable, verbose=False,
            )  # fmt: skip
            return graph, *propose_groups(graph, inner)
    except Exception as error:
        raise ChainError(
            "prune-graph",
            "the dependencies between the network's channels cannot be traced",
            why=f"torch-pruning: {type(error).__name__}: {error}",
            hint="prune:unstructured=0.5 or pattern=2:4, which need no dependency graph",
        ) from error


def _name_parts(module: nn.Module) -> dict[int, str]:
    """Return the names of a network's modules and parameters by id."""
    # torch-pruning refers to the objects themselves, and a cut to their names.
    names = {}
    for name, part in module.named_modules():
        names[id(part)] = name
    for name, parameter in module.named_parameters():
        names[id(parameter)] = name
    return names


def _select_differentiable(answer: object) -> tuple[torch.Tensor, ...]:
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


def _reject_member(kind: str, part: nn.Module) -> str:
    """Return the reason for which a member of a group excludes it from pruning, or ""."""
    if kind == "OUTPUT":
        return "its channels are an output of the network"
    if kind in ("LN", "GN"):
        return f"a {type(part).__name__} normalizes over all of its channels"
    if kind in ("MHA", "LSTM"):
        return f"a {type(part).__name__} is not pruned"
    return ""


def _read_group(
    group: ProposedGroup, graph: DependencyGraph, names: Mapping[int, str]
) -> tuple[Group, str]:
    """Convert a group of the graph; return it with the reason why it cannot be pruned, or ""."""
    reason = ""
    slices: dict[tuple[str, str], Slice] = {}
    for item in group.items:
        part = item.dep.target.module
        kind = item.dep.target.type.name
        # The first reason is reported; the slices are collected nevertheless, since they name the
        # layers that are skipped for it.
        reason = reason or _reject_member(kind, part)
        if kind not in KINDS:
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
