"""Prune a module: channels first, then single weights. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.passes.module import Context, ModuleResult
from edgepack.passes.network import group_by_reason
from edgepack.passes.prune.options import PruneOptions
from edgepack.passes.prune.structured import PrunedChannels, prune_channels
from edgepack.passes.prune.zeros import PrunedWeights, prune_weights

if TYPE_CHECKING:
    from torch import nn


def prune_module(module: nn.Module, options: PruneOptions, context: Context) -> ModuleResult:
    """Prune the module; see `prune`."""
    notes: list[str] = []
    details: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    if options.structured:
        channels = prune_channels(module, options, context)
        recipe = channels.cut.to_json()
        details["structured"] = {**channels.figures, "left": dict(channels.skipped)}
        notes += _format_channels(channels, options)
    if options.zeros:
        zeros = prune_weights(module, options)
        details["zeros"] = _figures(zeros)
        notes += _format_weights(zeros, options, details["zeros"])
    return ModuleResult(module, True, tuple(notes), details, recipe)


def _format_channels(result: PrunedChannels, options: PruneOptions) -> list[str]:
    """Return the notes about channels and heads."""
    parameters, macs = result.figures["parameters"], result.figures["macs"]
    layers, heads = result.figures["layers"], result.figures["heads"]
    removed = sum(before - after for before, after in layers.values())
    scope = "the same share of each layer" if options.per_layer else "across the network"
    notes = [
        f"removed the {removed:,} least important channels of {len(layers)} layers ({scope}), by "
        f"{result.figures['by']}: parameters {parameters[0]:,} -> {parameters[1]:,}, "
        f"multiply-accumulates {macs[0]:,} -> {macs[1]:,}"
    ]
    if heads:
        lost = sum(before - after for before, after in heads.values())
        total = sum(before for before, _ in heads.values())
        notes.append(f"removed {lost} of {total} attention heads in {len(heads)} layers")
    return notes + [
        f"channels not pruned: {sentence}" for sentence in group_by_reason(result.skipped)
    ]


def _figures(result: PrunedWeights) -> dict[str, Any]:
    """Return the figures on zeroed weights for the ledger."""
    weights = sum(total for total, _ in result.layers.values())
    zeros = sum(count for _, count in result.layers.values())
    return {
        "weights": weights,
        "zeros": zeros,
        "layers": {name: list(counts) for name, counts in result.layers.items()},
        "left": result.skipped,
    }


def _format_weights(
    result: PrunedWeights, options: PruneOptions, figures: Mapping[str, Any]
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
    return notes + [
        f"weights not pruned: {sentence}" for sentence in group_by_reason(result.skipped)
    ]
