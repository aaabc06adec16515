"""Factorize a module: measure layers, choose ranks, split. Importing this module needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepack.errors import ChainError
from edgepack.passes.factorize.layers import Layer, find_layers
from edgepack.passes.factorize.moments import observe
from edgepack.passes.factorize.options import FactorizeOptions
from edgepack.passes.factorize.ranks import Choice, by_budget, by_loss
from edgepack.passes.factorize.spectrum import Spectrum, spectrum
from edgepack.passes.factorize.split import fill, split
from edgepack.passes.module import Context, ModuleResult
from edgepack.passes.network import (
    count_macs,
    group_by_reason,
    make_arguments,
    replace_submodule,
    select_layers,
)

if TYPE_CHECKING:
    from torch import nn


def factorize_module(
    module: nn.Module, options: FactorizeOptions, context: Context
) -> ModuleResult:
    """Factorize the module's layers; see `factorize`."""
    example = make_arguments(context, context.example)
    layers, skipped = find_layers(module, example)
    selection = select_layers(
        options.NAME, [x.name for x in layers], options.include, options.exclude
    )
    skipped |= {x.name: "the options exclude it" for x in layers if x.name not in selection}
    layers = [layer for layer in layers if layer.name in selection]
    if not layers:
        raise ChainError(
            "factorize-nothing",
            "no layer of the network can be factorized",
            why="; ".join(group_by_reason(skipped)) or "it has no Linear and no convolution",
            hint="remove factorize from the chain",
        )
    spectra = _spectra(module, layers, options, context)
    choices = [_choice(layer, spectra[layer.name], options) for layer in layers]
    ranks, unprofitable = _ranks(choices, options)
    skipped |= unprofitable
    if not ranks:
        return ModuleResult(
            module, False, _format_skipped(skipped), {"left": skipped}, {"ranks": {}, "bias": False}
        )

    # Counted before the split; afterwards a layer's name refers to its pair.
    macs = count_macs(module, example)
    for layer in layers:
        if layer.name in ranks:
            pair = split(layer.module, ranks[layer.name], options.measured)
            fill(pair, layer, spectra[layer.name])
            replace_submodule(module, layer.name, pair)
    details = _details(choices, ranks, macs, count_macs(module, example), options)
    recipe = {"ranks": ranks, "bias": options.measured}
    return ModuleResult(
        module, True, _format_notes(details, skipped, options), {**details, "left": skipped}, recipe
    )


def _spectra(
    module: nn.Module, layers: Sequence[Layer], options: FactorizeOptions, context: Context
) -> dict[str, Spectrum]:
    """Return the spectrum of each layer by name."""
    moments = {}
    if options.measured:
        moments = observe(module, layers, context, options.batch_size)
    result = {}
    context.progress.expect(len(layers))
    for layer in layers:
        context.progress.tell(layer.name)
        # Moments hold an [n, n] matrix per layer: popping them frees each one after its use.
        result[layer.name] = spectrum(layer, moments.pop(layer.name, None), options.method)
        context.progress.advance()
    return result


def _choice(layer: Layer, result: Spectrum, options: FactorizeOptions) -> Choice:
    """Return the ranks of a layer that save parameters."""
    # With measured outputs a bias preserves their mean, and counts as parameters.
    bias, step = options.measured, options.round_to
    ranks = [
        rank
        for rank in range(step, len(result.energy) + 1, step)
        if layer.factorized(rank, bias) < layer.parameters
    ]
    lost = result.lost()
    return Choice(
        layer.name,
        layer.parameters,
        tuple(ranks),
        tuple(layer.factorized(rank, bias) for rank in ranks),
        tuple(float(lost[rank]) for rank in ranks),
    )


def _ranks(
    choices: Sequence[Choice], options: FactorizeOptions
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the rank of each layer to factorize, and for each other layer the reason."""
    rank = "rank"
    if options.round_to > 1:
        rank = f"rank that is a multiple of {options.round_to}"
    skipped = {x.name: f"no {rank} saves parameters" for x in choices if not x.ranks}
    # A Linear 8 -> 8 has 64 weights and two factors of rank 4 have as many: nothing is saved.
    choices = [choice for choice in choices if choice.ranks]
    if options.parameters and choices:
        ranks = by_budget(choices, options.parameters)
        reason = "the budget is met by layers with less error"
    else:
        # An SNR of 20 dB permits an error of 10^(-20/10) = 0.01 of the variance.
        allowed = 10 ** (-options.snr_db / 10)
        if options.energy:
            allowed = 1 - options.energy
        result = {choice.name: by_loss(choice, allowed) for choice in choices}
        ranks = {name: rank for name, rank in result.items() if rank is not None}
        reason = "no rank that saves parameters meets the bound on its error"
    return ranks, skipped | {x.name: reason for x in choices if x.name not in ranks}


def _details(
    choices: Sequence[Choice],
    ranks: Mapping[str, int],
    before: Mapping[str, int],
    after: Mapping[str, int],
    options: FactorizeOptions,
) -> dict[str, Any]:
    """Return the figures for the ledger."""
    layers = {}
    for choice in choices:
        if choice.name in ranks:
            index = choice.ranks.index(ranks[choice.name])
            lost = choice.lost[index]
            layers[choice.name] = {
                "rank": ranks[choice.name],
                "parameters": [choice.whole, choice.sizes[index]],
                "macs": [before.get(choice.name, 0), after.get(choice.name, 0)],
                "lost": float(f"{lost:.4g}"),
                # Relative to the output's variance if it was measured, else to the weights' energy.
                "snr_db": round(-10 * math.log10(lost), 2) if lost > 0 else None,
            }
    sizes = [layer["parameters"] for layer in layers.values()]
    multiplications = [layer["macs"] for layer in layers.values()]
    return {
        "method": options.method,
        "measured": options.measured,
        "layers": layers,
        "touched_parameters": [sum(x) for x in zip(*sizes, strict=True)],
        "touched_macs": [sum(x) for x in zip(*multiplications, strict=True)],
        "macs": [before[""], after[""]],
    }


def _format_notes(
    details: Mapping[str, Any], skipped: Mapping[str, str], options: FactorizeOptions
) -> tuple[str, ...]:
    """Return the notes of the pass."""
    parameters, macs = details["touched_parameters"], details["touched_macs"]
    ranks = [layer["rank"] for layer in details["layers"].values()]
    worst_name, worst = max(details["layers"].items(), key=lambda item: item[1]["lost"])
    quantity = "variance of its output" if options.measured else "energy of its weights"
    return (
        f"factorized {len(ranks)} layers with ranks from {min(ranks)} to {max(ranks)}: "
        f"parameters {parameters[0]:,} -> {parameters[1]:,}, "
        f"multiply-accumulates {macs[0]:,} -> {macs[1]:,}",
        f"largest error: {worst_name}, {100 * worst['lost']:.3g} % of the {quantity}",
        *_format_skipped(skipped),
    )


def _format_skipped(skipped: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note for each reason for which layers were skipped."""
    return tuple(f"not factorized: {sentence}" for sentence in group_by_reason(skipped))
