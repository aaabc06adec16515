"""The pass: look at the layers, choose ranks, split. Only importable where torch is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.chain.factorize.layers import Layer, find_layers
from edgepack.chain.factorize.moments import observe
from edgepack.chain.factorize.options import FactorizeOptions
from edgepack.chain.factorize.ranks import Choice, by_budget, by_loss
from edgepack.chain.factorize.spectrum import Spectrum, spectrum
from edgepack.chain.factorize.split import fill, split
from edgepack.chain.module import Context, ModuleResult
from edgepack.chain.network import arguments, count_macs, grouped, put, select
from edgepack.errors import ChainError


def run(module: Any, options: FactorizeOptions, context: Context) -> ModuleResult:
    """Factorize the module's layers; see `factorize`."""
    example = arguments(context, context.example)
    layers, left = find_layers(module, example)
    chosen = select(options.NAME, [x.name for x in layers], options.include, options.exclude)
    left |= {x.name: "the options leave it" for x in layers if x.name not in chosen}
    layers = [layer for layer in layers if layer.name in chosen]
    if not layers:
        raise ChainError(
            "factorize-nothing",
            "the network has no layer that could be factorized",
            why="; ".join(grouped(left)) or "it has no Linear and no convolution",
            hint="leave factorize out of the chain",
        )
    spectra = _spectra(module, layers, options, context)
    choices = [_choice(layer, spectra[layer.name], options) for layer in layers]
    ranks, more = _ranks(choices, options)
    left |= more
    if not ranks:
        return ModuleResult(
            module, False, _left(left), {"left": left}, {"ranks": {}, "bias": False}
        )

    macs = count_macs(module, example)
    for layer in layers:
        if layer.name in ranks:
            pair = split(layer.module, ranks[layer.name], options.measured)
            fill(pair, layer, spectra[layer.name])
            put(module, layer.name, pair)
    details = _details(choices, ranks, macs, count_macs(module, example), options)
    recipe = {"ranks": ranks, "bias": options.measured}
    return ModuleResult(
        module, True, _notes(details, left, options), {**details, "left": left}, recipe
    )


def _spectra(
    module: Any, layers: Sequence[Layer], options: FactorizeOptions, context: Context
) -> dict[str, Spectrum]:
    """The directions of every layer."""
    moments = {}
    if options.measured:
        moments = observe(module, layers, context, options.batch_size)
    found = {}
    context.progress.expect(len(layers))
    for layer in layers:
        context.progress.tell(layer.name)
        found[layer.name] = spectrum(layer, moments.pop(layer.name, None), options.method)
        context.progress.advance()
    return found


def _choice(layer: Layer, found: Spectrum, options: FactorizeOptions) -> Choice:
    """The ranks of a layer that would make it smaller."""
    # Where outputs were looked at, a bias keeps their mean.
    bias, step = options.measured, options.round_to
    ranks = [
        rank
        for rank in range(step, len(found.energy) + 1, step)
        if layer.factorized(rank, bias) < layer.parameters
    ]
    lost = found.lost()
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
    """The rank of every layer that is cut, and the reason of each that is not."""
    unit = f" that is a multiple of {options.round_to}" if options.round_to > 1 else ""
    left = {x.name: f"no rank{unit} makes it smaller" for x in choices if not x.ranks}
    choices = [choice for choice in choices if choice.ranks]
    if options.parameters and choices:
        ranks = by_budget(choices, options.parameters)
        reason = "the budget is met without it: others lose less"
    else:
        allowed = 1 - options.energy if options.energy else 10 ** (-options.snr_db / 10)
        found = {choice.name: by_loss(choice, allowed) for choice in choices}
        ranks = {name: rank for name, rank in found.items() if rank is not None}
        reason = "it would grow: no rank that saves parameters keeps as much of it as was asked for"
    return ranks, left | {x.name: reason for x in choices if x.name not in ranks}


def _details(
    choices: Sequence[Choice],
    ranks: Mapping[str, int],
    before: Mapping[str, int],
    after: Mapping[str, int],
    options: FactorizeOptions,
) -> dict[str, Any]:
    """The figures for the ledger."""
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
                # Of the output's variance, where outputs were looked at.
                "snr_db": round(-10 * math.log10(lost), 2) if lost > 0 else None,
            }
    touched = [layer["parameters"] for layer in layers.values()]
    return {
        "method": options.method,
        "measured": options.measured,
        "layers": layers,
        "touched_parameters": [sum(x) for x in zip(*touched, strict=True)],
        "touched_macs": [sum(x) for x in zip(*(y["macs"] for y in layers.values()), strict=True)],
        "macs": [before[""], after[""]],
    }


def _notes(
    details: Mapping[str, Any], left: Mapping[str, str], options: FactorizeOptions
) -> tuple[str, ...]:
    parameters, macs = details["touched_parameters"], details["touched_macs"]
    ranks = [layer["rank"] for layer in details["layers"].values()]
    worst_name, worst = max(details["layers"].items(), key=lambda item: item[1]["lost"])
    of = "variance of its output" if options.measured else "energy of its weights"
    return (
        f"{len(ranks)} layers became two each, of rank {min(ranks)} to {max(ranks)}: "
        f"{parameters[0]:,} parameters became {parameters[1]:,}, "
        f"{macs[0]:,} multiply-accumulates {macs[1]:,}",
        f"{worst_name} lost most, {100 * worst['lost']:.3g} % of the {of}",
        *_left(left),
    )


def _left(left: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"left as they are: {sentence}" for sentence in grouped(left))
