"""Channels, filters and heads that go. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.chain.module import Context
from edgepack.chain.network import arguments, count_macs, select
from edgepack.chain.prune.cut import Cut, cut
from edgepack.chain.prune.graph import Found, find_groups
from edgepack.chain.prune.importance import by_taylor, by_weights, costs
from edgepack.chain.prune.options import PruneOptions
from edgepack.chain.prune.search import Ranking, smallest_step, without
from edgepack.chain.prune.trial import Trial
from edgepack.errors import ChainError


@dataclass(frozen=True)
class Structured:
    """What went.

    Attributes:
        cut: all of it.
        figures: for the ledger.
        left: by layer, why its channels stay.
    """

    cut: Cut
    figures: Mapping[str, Any]
    left: Mapping[str, str]


def prune_channels(module: Any, options: PruneOptions, context: Context) -> Structured:
    """Take the least important channels out of the module until the budget is met.

    Raises what `prune` raises.
    """
    example = arguments(context, context.example)
    found = find_groups(module, example)
    _choose(found, module, options)
    trial = Trial(module, example)
    _try_out(found, trial, options, context)
    if not found.groups:
        raise ChainError(
            "prune-nothing",
            "the network has no channels that could go",
            why="; ".join(f"{name}: {why}" for name, why in list(found.left.items())[:6])
            or "it has no Linear and no convolution",
            hint="prune:unstructured=0.5 or pattern=2:4, or leave prune out of the chain",
        )
    if options.importance == "taylor":
        importance, measured = by_taylor(module, found.groups, options, context)
        macs = count_macs(module, example) if options.of == "macs" else None
        paid = costs(module, found.groups, macs)
        importance = [lost / max(cost, 1.0) for lost, cost in zip(importance, paid, strict=True)]
    else:
        importance = by_weights(module, found.groups, 1 if options.importance == "l1" else 2)
        measured = f"the {options.importance} norm of their weights"
    ranking = Ranking(found.groups, importance, options.per_layer, options.round_to)
    what = _search(module, ranking, options, example, found)
    reason = trial.reason(what)
    if reason:
        raise ChainError(
            "prune-graph",
            "the channels that should go cannot go together",
            why=reason,
            hint="leave some layers out, with exclude=, or use prune:unstructured=0.5",
        )
    before = _figures(module, example)
    kept = _layers(module)
    cut(module, what)
    after, now = _figures(module, example), _layers(module)
    figures = {
        name: [before[name], after[name]] for name in before
    } | {
        "by": measured,
        "layers": {name: [kept[name], now[name]] for name in kept if kept[name] != now[name]},
        "heads": {
            group.root.rpartition(".")[0]: [len(group.units), len(group.units) - _gone(what, group)]
            for group in found.groups
            if group.heads and _gone(what, group)
        },
    }  # fmt: skip
    return Structured(what, figures, found.left)


def _gone(what: Cut, group: Any) -> int:
    """Units of a group that a cut takes."""
    return len(what.outputs.get(group.root, ())) // len(group.units[0])


def _choose(found: Found, module: Any, options: PruneOptions) -> None:
    """Leave the groups that the options leave."""
    names = [n for n, part in module.named_modules() if isinstance(part, (nn.Linear, _ConvNd))]
    chosen = select(options.NAME, names, options.include, options.exclude)
    for group in list(found.groups):
        layers = [name for name in group.producers if name in names]
        if not chosen.issuperset(layers):
            found.groups.remove(group)
            found.leave(layers, "the options leave it, or what goes with it")


def _try_out(found: Found, trial: Trial, options: PruneOptions, context: Context) -> None:
    """Leave the groups that cannot go, or not by a whole multiple."""
    context.progress.expect(len(found.groups))
    for group in list(found.groups):
        context.progress.tell(group.root)
        # Every other one: what mixes channels up shows.
        reason = trial.reason(group.cut(range(0, len(group.units), 2)))
        if not reason and not group.heads and group.channels <= options.round_to:
            reason = f"of its {group.channels} channels no smaller multiple of {options.round_to}"
        if reason:
            found.groups.remove(group)
            found.leave(group.producers, reason)
        context.progress.advance()


def _search(
    module: Any, ranking: Ranking, options: PruneOptions, example: Sequence[Any], found: Found
) -> Cut:
    """The least that meets the budget, measured on the network without it."""

    def measured(step: int) -> int:
        return _figures(without(module, ranking.cut(step)), example)[options.of]

    whole = _figures(module, example)[options.of]
    budget = (1 - options.structured) * whole
    step = smallest_step(ranking, lambda step: measured(step) <= budget)
    if step is None:
        least = measured(ranking.steps)
        bound = "; ".join(f"{name}: {why}" for name, why in list(found.left.items())[:4])
        raise ChainError(
            "prune-budget",
            f"{options.structured:g} of the network's {options.of} cannot go",
            why=f"without all channels that can go, {least:,} of {whole:,} stay"
            + (f"; bound are {bound}" if bound else ""),
            hint=f"structured={int(100 * (1 - least / whole)) / 100:g} at most, a smaller round_to,"
            " or of=" + ("macs" if options.of == "parameters" else "parameters"),
        )
    return ranking.cut(step)


def _figures(module: Any, example: Sequence[Any]) -> dict[str, int]:
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": count_macs(module, example)[""],
    }


def _layers(module: Any) -> dict[str, int]:
    """Output channels by name of the layer."""
    return {
        name: getattr(part, "out_channels", None) or part.out_features
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, _ConvNd))
    }
