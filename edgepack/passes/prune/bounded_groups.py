"""Bounded traversal of torch-pruning's dependency graph. Importing this module needs torch."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.passes.prune.cut import CutError

# Largest number of steps of a group per dependency of the graph; a finite group needs at most one.
MOST = 4
ENDLESS = "its channels are permuted, and the group of dependent channels does not terminate"


def proposed_by(graph: Any, inner: nn.Module) -> tuple[list[Any], list[Any]]:
    """Return the groups of all layers, and the layers whose group does not terminate.

    Same as `get_all_groups` of torch-pruning, which does not return if halves of channels are
    swapped (rotary embeddings): it follows an unbounded sequence of permutations.

    Args:
        graph: the dependency graph.
        inner: torch-pruning's `dependency.graph` module, whose `Group` is replaced meanwhile.
    """
    steps = sum(len(node.dependencies) for node in graph.module2node.values())

    # torch-pruning searches a list of all earlier steps at each step. A set makes that constant
    # time, and its size is the number of steps.
    class Bounded(inner.Group):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.visited: set[Any] = set()

        def add_dep(self, dep: Any, idxs: Any) -> None:
            self.visited.add((id(dep.target), dep.handler, tuple(idxs)))
            if len(self.visited) > MOST * steps:
                raise CutError(ENDLESS)
            super().add_dep(dep, idxs)

        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return (id(dep.target), dep.handler, tuple(idxs)) in self.visited

    groups: list[Any] = []
    endless: list[Any] = []
    visited = set(graph.IGNORED_LAYERS_IN_TRACING)
    original_group = inner.Group
    inner.Group = Bounded
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
            cuts = graph.is_out_channel_pruning_fn
            visited |= {dep.target.module for dep, _ in group if cuts(dep.handler)}
    finally:
        inner.Group = original_group
    return groups, endless
