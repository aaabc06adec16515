"""Bounded traversal of torch-pruning's dependency graph. Importing this module needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.passes.prune.cut import CutError

if TYPE_CHECKING:
    from torch_pruning.dependency import Dependency, DependencyGraph
    from torch_pruning.dependency import Group as ProposedGroup

# Largest number of steps of a group per dependency of the graph; a finite group needs at most one.
MAX_STEPS = 4
ENDLESS = "its channels are permuted, and the group of dependent channels does not terminate"


def propose_groups(
    graph: DependencyGraph, inner: Any
) -> tuple[list[ProposedGroup], list[nn.Module]]:
    """Return the groups of all layers, and the layers whose group does not terminate.

    Same as `get_all_groups` of torch-pruning, which does not return if halves of channels are
    swapped (rotary embeddings): it follows an unbounded sequence of permutations.

    Args:
        graph: the dependency graph.
        inner: torch-pruning's `dependency.graph` module, whose `Group` is replaced meanwhile.
    """
    steps = sum(len(node.dependencies) for node in graph.module2node.values())
    groups: list[ProposedGroup] = []
    endless: list[nn.Module] = []
    visited = set(graph.IGNORED_LAYERS_IN_TRACING)
    original_group = inner.Group
    inner.Group = _bound_group(inner.Group, MAX_STEPS * steps)
    try:
        for part in list(graph.module2node):
            if part in visited or not isinstance(part, (nn.Linear, _ConvNd)):
                continue
            channels = graph.get_out_channels(part)
            cut = graph.get_pruner_of_module(part).prune_out_channels
            try:
                group = graph.get_pruning_group(part, cut, list(range(channels)))
            except CutError:
                endless.append(part)
                continue
            groups.append(group)
            # All layers whose outputs belong to this group would propose the same one again.
            for dependency, _ in group:
                if graph.is_out_channel_pruning_fn(dependency.handler):
                    visited.add(dependency.target.module)
    finally:
        inner.Group = original_group
    return groups, endless


def _bound_group(kind: type[ProposedGroup], most: int) -> type[ProposedGroup]:
    """Return a group that raises CutError after too many steps.

    A step of a group is a dependency between two layers with the channels that it carries over.
    """

    # torch-pruning searches a list of all earlier steps at each step. A set makes that constant
    # time, and its size is the number of steps.
    class Bounded(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.visited: set[tuple[int, object, tuple[int, ...]]] = set()

        def add_dep(self, dep: Dependency, idxs: list[int]) -> None:
            self.visited.add((id(dep.target), dep.handler, tuple(idxs)))
            if len(self.visited) > most:
                raise CutError(ENDLESS)
            super().add_dep(dep, idxs)

        def has_pruning_op(self, dep: Dependency, idxs: list[int]) -> bool:
            return (id(dep.target), dep.handler, tuple(idxs)) in self.visited

    return Bounded
