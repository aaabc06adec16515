"""Factorize a module: measure layers, choose ranks, split. Importing this module needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from edgepack.errors import ChainError
from edgepack.passes.factorize.layers import Layer, find_layers
from edgepack.passes.factorize.moments import observe
from edgepack.passes.factorize.options import FactorizeOptions
from edgepack.passes.factorize.ranks import Choice, choose_by_budget, choose_by_loss
from edgepack.passes.factorize.spectrum import Spectrum, compute_spectrum
from edgepack.passes.factorize.split import fill, split
from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.passes.network import (
    count_macs,
    group_by_reason,
    make_arguments,
    replace_submodule,
    select_layers,
)

if TYPE_CHECKING:
    from torch import nn


class LayerFigures(TypedDict):
    """Figures on a factorized layer; pairs are values before and after.

    Attributes:
        rank: number of channels between its two layers.
        parameters: weights and biases.
        macs: multiply-accumulates of one call.
        lost: share of the energy that the rank cannot represent.
        snr_db: the same as a ratio; None if nothing is lost.
    """

    rank: int
    parameters: list[int]
    macs: list[int]
    lost: float
    snr_db: float | None


class Figures(TypedDict):
    """Figures for the ledger.

    Attributes:
        method: "activation" or "svd".
        measured: True if activations were measured.
        layers: of each factorized layer, by name.
        touched_parameters: before and after, summed over the factorized layers.
        touched_macs: likewise.
        macs: multiply-accumulates of the network before and after.
    """

    method: str
    measured: bool
    layers: dict[str, LayerFigures]
    touched_parameters: list[int]
    touched_macs: list[int]
    macs: list[int]


def factorize_module(
    module: nn.Module, options: FactorizeOptions, context: ModuleContext
) -> ModuleResult:
    """Factorize the module's layers; see `factorize`."""
    example = make_arguments(context, context.example)
    candidates, skipped = find_layers(module, example)
    names = [layer.name for layer in candidates]
    selection = select_layers(options.NAME, names, options.include, options.exclude)
    layers = []
    for layer in candidates:
        if layer.name in selection:
            layers.append(layer)
        else:
            skipped[layer.name] = "the options exclude it"
    if not layers:
        raise ChainError(
            "factorize-nothing",
            "no layer of the network can be factorized",
            why="; ".join(group_by_reason(skipped)) or "it has no Linear and no convolution",
            hint="remove factorize from the chain",
        )
    spectra = _compute_spectra(module, layers, options, context)
    choices = [_list_ranks(layer, spectra[layer.name], options) for layer in layers]
    ranks, unprofitable = _choose_ranks(choices, options)
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
    details = _collect_figures(choices, ranks, macs, count_macs(module, example), options)
    recipe = {"ranks": ranks, "bias": options.measured}
    return ModuleResult(
        module, True, _format_notes(details, skipped, options), {**details, "left": skipped}, recipe
    )


def _compute_spectra(
    module: nn.Module, layers: Sequence[Layer], options: FactorizeOptions, context: ModuleContext
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
        result[layer.name] = compute_spectrum(layer, moments.pop(layer.name, None), options.method)
        context.progress.advance()
    return result


def _list_ranks(layer: Layer, spectrum: Spectrum, options: FactorizeOptions) -> Choice:
    """Return the ranks of a layer that save parameters.

    A Linear 512 -> 512 without a bias saves below rank 256; with round_to = 8 its ranks are 8, 16,
    ..., 248.
    """
    losses = spectrum.losses()
    ranks: list[int] = []
    sizes: list[int] = []
    lost: list[float] = []
    step = options.round_to
    for rank in range(step, len(spectrum.energy) + 1, step):
        # With measured outputs a bias preserves their mean, and counts as parameters.
        size = layer.count_factorized(rank, options.measured)
        if size < layer.parameters:
            ranks.append(rank)
            sizes.append(size)
            lost.append(float(losses[rank]))
    return Choice(layer.name, layer.parameters, tuple(ranks), tuple(sizes), tuple(lost))


def _choose_ranks(
    choices: Sequence[Choice], options: FactorizeOptions
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the rank of each layer to factorize, and for each other layer the reason."""
    permitted = "rank"
    if options.round_to > 1:
        permitted = f"rank that is a multiple of {options.round_to}"
    # A Linear 8 -> 8 has 64 weights and two factors of rank 4 have as many: nothing is saved.
    skipped: dict[str, str] = {}
    candidates: list[Choice] = []
    for choice in choices:
        if choice.ranks:
            candidates.append(choice)
        else:
            skipped[choice.name] = f"no {permitted} saves parameters"
    ranks, reason = _apply_bound(candidates, options)
    for choice in candidates:
        if choice.name not in ranks:
            skipped[choice.name] = reason
    return ranks, skipped


def _apply_bound(
    choices: Sequence[Choice], options: FactorizeOptions
) -> tuple[dict[str, int], str]:
    """Return the ranks by the bound of the options, and the reason why other layers have none."""
    if options.parameters and choices:
        ranks = choose_by_budget(choices, options.parameters)
        return ranks, "the budget is met by layers with less error"
    # An SNR of 20 dB permits an error of 10^(-20/10) = 0.01 of the variance.
    allowed = 10 ** (-options.snr_db / 10)
    if options.energy:
        allowed = 1 - options.energy
    ranks = {}
    for choice in choices:
        rank = choose_by_loss(choice, allowed)
        if rank is not None:
            ranks[choice.name] = rank
    return ranks, "no rank that saves parameters meets the bound on its error"


def _collect_figures(
    choices: Sequence[Choice],
    ranks: Mapping[str, int],
    before: Mapping[str, int],
    after: Mapping[str, int],
    options: FactorizeOptions,
) -> Figures:
    """Return the figures for the ledger.

    Args:
        choices: the ranks of all layers that save parameters.
        ranks: the chosen ones, by layer name.
        before: multiply-accumulates by submodule name before factorization.
        after: the same afterwards.
        options: of the pass.
    """
    figures: Figures = {
        "method": options.method,
        "measured": options.measured,
        "layers": {},
        "touched_parameters": [0, 0],
        "touched_macs": [0, 0],
        "macs": [before[""], after[""]],
    }
    for choice in choices:
        if choice.name not in ranks:
            continue
        index = choice.ranks.index(ranks[choice.name])
        lost = choice.lost[index]
        layer: LayerFigures = {
            "rank": ranks[choice.name],
            "parameters": [choice.parameters, choice.sizes[index]],
            "macs": [before.get(choice.name, 0), after.get(choice.name, 0)],
            "lost": float(f"{lost:.4g}"),
            "snr_db": None,
        }
        # Relative to the output's variance if it was measured, else to the weights' energy: 1 % of
        # it lost is 20 dB.
        if lost > 0:
            layer["snr_db"] = round(-10 * math.log10(lost), 2)
        figures["layers"][choice.name] = layer
        # Index 0 is before, 1 is after.
        for position in (0, 1):
            figures["touched_parameters"][position] += layer["parameters"][position]
            figures["touched_macs"][position] += layer["macs"][position]
    return figures


def _format_notes(
    details: Figures, skipped: Mapping[str, str], options: FactorizeOptions
) -> tuple[str, ...]:
    """Return the notes of the pass."""
    parameters, macs = details["touched_parameters"], details["touched_macs"]
    ranks = [layer["rank"] for layer in details["layers"].values()]
    worst_name, worst = max(details["layers"].items(), key=lambda item: item[1]["lost"])
    quantity = "energy of its weights"
    if options.measured:
        quantity = "variance of its output"
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
