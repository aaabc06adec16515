"""Prune a module: channels first, then single weights. Importing this module needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from edgepack.passes.module import ModuleContext, ModuleResult, Recipe
from edgepack.passes.network import group_by_reason
from edgepack.passes.prune.options import PruneOptions
from edgepack.passes.prune.structured import PrunedChannels, prune_channels
from edgepack.passes.prune.zeros import PrunedWeights, prune_weights

if TYPE_CHECKING:
    from torch import nn


class ZeroFigures(TypedDict):
    """Figures on zeroed weights for the ledger.

    Attributes:
        weights: number of weights of the pruned layers.
        zeros: number of zeros among them.
        layers: both numbers by layer name.
        left: for each layer that was not pruned, the reason.
    """

    weights: int
    zeros: int
    layers: dict[str, list[int]]
    left: dict[str, str]


def prune_module(module: nn.Module, options: PruneOptions, context: ModuleContext) -> ModuleResult:
    """Prune the module; see `prune`."""
    notes: list[str] = []
    details: dict[str, object] = {}
    # Zeros are stored with the weights, so only the removal of channels needs a recipe.
    recipe: Recipe = {}
    if options.structured:
        channels = prune_channels(module, options, context)
        recipe = channels.cut.to_json()
        details["structured"] = {**channels.figures, "left": dict(channels.skipped)}
        notes += _format_channels(channels, options)
    if options.zeros:
        zeros = prune_weights(module, options)
        figures = _count_zeros(zeros)
        details["zeros"] = figures
        notes += _format_weights(zeros, options, figures)
    return ModuleResult(module, True, tuple(notes), details, recipe)


def _format_channels(result: PrunedChannels, options: PruneOptions) -> list[str]:
    """Return the notes about channels and heads."""
    parameters, macs = result.figures["parameters"], result.figures["macs"]
    layers, heads = result.figures["layers"], result.figures["heads"]
    removed = sum(before - after for before, after in layers.values())
    scope = "across the network"
    if options.per_layer:
        scope = "the same share of each layer"
    notes = [
        f"removed the {removed:,} least important channels of {len(layers)} layers ({scope}), by "
        f"{result.figures['by']}: parameters {parameters[0]:,} -> {parameters[1]:,}, "
        f"multiply-accumulates {macs[0]:,} -> {macs[1]:,}"
    ]
    if heads:
        # Pairs of before and after, as in [[12, 8], [12, 12]]: their sums are 24 and 20.
        before, after = map(sum, zip(*heads.values(), strict=True))
        notes.append(f"removed {before - after} of {before} attention heads in {len(heads)} layers")
    for sentence in group_by_reason(result.skipped):
        notes.append(f"channels not pruned: {sentence}")
    return notes


def _count_zeros(result: PrunedWeights) -> ZeroFigures:
    """Return the figures on zeroed weights for the ledger."""
    weights = zeros = 0
    layers = {}
    for name, (size, zero_count) in result.layers.items():
        weights += size
        zeros += zero_count
        layers[name] = [size, zero_count]
    return {"weights": weights, "zeros": zeros, "layers": layers, "left": result.skipped}


def _format_weights(
    result: PrunedWeights, options: PruneOptions, figures: ZeroFigures
) -> list[str]:
    """Return the notes about single weights."""
    share = f"{figures['zeros']:,} of {figures['weights']:,} weights of {len(result.layers)} layers"
    if options.pattern:
        notes = [
            f"{share} are zero, two of every four: faster only if the device's engine has kernels "
            "for that pattern; the file is no smaller"
        ]
    else:
        notes = [f"{share} are zero: the file is no smaller, and no kernel is faster"]
    for sentence in group_by_reason(result.skipped):
        notes.append(f"weights not pruned: {sentence}")
    return notes
