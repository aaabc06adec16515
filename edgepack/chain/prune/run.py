"""The pass: channels first, then single weights. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.chain.module import Context, ModuleResult
from edgepack.chain.network import grouped
from edgepack.chain.prune.options import PruneOptions
from edgepack.chain.prune.structured import Structured, prune_channels
from edgepack.chain.prune.zeros import Zeros, prune_weights


def run(module: Any, options: PruneOptions, context: Context) -> ModuleResult:
    """Prune the module; see `prune`."""
    notes: list[str] = []
    details: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    if options.structured:
        channels = prune_channels(module, options, context)
        recipe = channels.cut.to_json()
        details["structured"] = {**channels.figures, "left": dict(channels.left)}
        notes += _of_channels(channels, options)
    if options.zeros:
        zeros = prune_weights(module, options)
        details["zeros"] = _figures(zeros)
        notes += _of_zeros(zeros, options, details["zeros"])
    return ModuleResult(module, True, tuple(notes), details, recipe)


def _of_channels(found: Structured, options: PruneOptions) -> list[str]:
    parameters, macs = found.figures["parameters"], found.figures["macs"]
    layers, heads = found.figures["layers"], found.figures["heads"]
    gone = sum(before - after for before, after in layers.values())
    where = "of every layer the same share," if options.per_layer else "of the whole network"
    notes = [
        f"{gone:,} channels of {len(layers)} layers went, {where} those that matter least by "
        f"{found.figures['by']}: {parameters[0]:,} parameters became {parameters[1]:,}, "
        f"{macs[0]:,} multiply-accumulates {macs[1]:,}"
    ]
    if heads:
        lost = sum(before - after for before, after in heads.values())
        total = sum(before for before, _ in heads.values())
        notes.append(f"{lost} of {total} attention heads went, in {len(heads)} layers")
    return notes + [f"channels stay: {sentence}" for sentence in grouped(found.left)]


def _figures(found: Zeros) -> dict[str, Any]:
    weights = sum(total for total, _ in found.layers.values())
    zeros = sum(count for _, count in found.layers.values())
    return {
        "weights": weights,
        "zeros": zeros,
        "layers": {name: list(counts) for name, counts in found.layers.items()},
        "left": found.left,
    }


def _of_zeros(found: Zeros, options: PruneOptions, figures: Mapping[str, Any]) -> list[str]:
    share = f"{figures['zeros']:,} of {figures['weights']:,} weights of {len(found.layers)} layers"
    if options.pattern:
        notes = [
            f"{share} are zero, two of every four: faster only where the device's engine has "
            "kernels for that; the file is no smaller"
        ]
    else:
        notes = [f"{share} are zero: the file is no smaller for it, and no kernel faster"]
    return notes + [f"weights stay: {sentence}" for sentence in grouped(found.left)]
