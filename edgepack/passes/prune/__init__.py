"""Pruning: remove the least important channels, filters and attention heads, or zero weights.

structured    removes whole channels: the network becomes smaller and faster on any device
pattern       zeroes two of every four weights: faster on devices with a kernel for that pattern
unstructured  zeroes single weights: the file is no smaller and no kernel of ours is faster

prune_module    the pass
options         the options of the pass
channel_groups  search for groups of channels that must be removed together
group           such a group, as slices of layers
units           division of a group into the smallest removable sets of channels
bounded_groups  bounded traversal of torch-pruning's dependency graph
cut             the slices of layers to remove, and their removal
cut_check       check of a cut on the network itself
importance      importance scores of channels
search          selection of channels until the budget is met
structured      structured pruning, from groups to figures
zeros           pruning of single weights
layers          layers that pruning changes, and reasons for the others
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.passes.module import ModuleContext, ModuleResult, Recipe
from edgepack.passes.protocol import ModulePass
from edgepack.passes.prune.options import PruneOptions

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Prune", "PruneOptions", "prune", "replay"]


def prune(module: nn.Module, options: PruneOptions, context: ModuleContext) -> ModuleResult:
    """Remove channels, zero weights, or both, according to the options.

    Raises:
        ChainError: prune-layers, prune-nothing, prune-budget, prune-graph, prune-labels.
        HostError: package-missing if channels are to be pruned without torch-pruning.
    """
    from edgepack.passes.prune.prune_module import prune_module

    return prune_module(module, options, context)


def replay(module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
    """Remove the channels of a recipe; zeros are stored with the weights."""
    from edgepack.passes.prune.cut import Cut, cut

    cut(module, Cut.from_json(recipe))
    return module


class Prune(ModulePass[PruneOptions]):
    """Remove the least important channels, or zero weights."""

    name = PruneOptions.NAME
    options = PruneOptions

    def advice(self) -> str:
        """Suggest how to lose less quality."""
        return "train after pruning (--chain prune,distill), prune less"

    def apply(
        self, module: nn.Module, options: PruneOptions, context: ModuleContext
    ) -> ModuleResult:
        """Return the changed network with its recipe."""
        return prune(module, options, context)

    def replay(self, module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
        """Rebuild the structure of a recipe."""
        return replay(module, recipe, context)
