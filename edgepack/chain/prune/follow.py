"""The groups of torch-pruning's graph, followed to their end. Only importable where torch is."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.chain.prune.cut import Bound

# Steps of a group for every dependency of the graph: one that ends has fewer than one.
MOST = 4
ENDLESS = "its channels change places, and their group comes to no end"


def proposed_by(graph: Any, inner: Any) -> tuple[list[Any], list[Any]]:
    """The groups of all layers, and the layers whose group comes to no end.

    As `get_all_groups` of torch-pruning, which follows halves of channels that change places
    (rotary embeddings) through ever new orders of them.

    Args:
        graph: the dependency graph.
        inner: torch-pruning's module of it.
    """
    steps = sum(len(node.dependencies) for node in graph.module2node.values())

    class Bounded(inner.Group):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.known: set[Any] = set()

        def add_dep(self, dep: Any, idxs: Any) -> None:
            self.known.add((id(dep.target), dep.handler, tuple(idxs)))
            if len(self.known) > MOST * steps:
                raise Bound(ENDLESS)
            super().add_dep(dep, idxs)

        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return (id(dep.target), dep.handler, tuple(idxs)) in self.known

    found: list[Any] = []
    endless: list[Any] = []
    visited = set(graph.IGNORED_LAYERS_IN_TRACING)
    plain = inner.Group
    inner.Group = Bounded
    try:
        for part in list(graph.module2node):
            if part in visited or not isinstance(part, (nn.Linear, _ConvNd)):
                continue
            channels = graph.get_out_channels(part)
            cut = graph.get_pruner_of_module(part).prune_out_channels
            try:
                group = graph.get_pruning_group(part, cut, list(range(channels)))
            except Bound:
                endless.append(part)
                continue
            found.append(group)
            cuts = graph.is_out_channel_pruning_fn
            visited |= {dep.target.module for dep, _ in group if cuts(dep.handler)}
    finally:
        inner.Group = plain
    return found, endless
