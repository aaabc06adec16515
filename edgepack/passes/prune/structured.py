"""Structured pruning of channels, filters and heads. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.errors import ChainError
from edgepack.passes.module import Context
from edgepack.passes.network import count_macs, make_arguments, select_layers
from edgepack.passes.prune.channel_groups import Group, Grouping, find_groups
from edgepack.passes.prune.cut import Cut, cut
from edgepack.passes.prune.cut_check import Trial
from edgepack.passes.prune.importance import by_taylor, by_weights, costs
from edgepack.passes.prune.options import BUDGETS, PruneOptions
from edgepack.passes.prune.search import Ranking, smallest_step, without

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PrunedChannels:
    """Result of structured pruning.

    Attributes:
        cut: the slices that were removed.
        figures: for the ledger.
        skipped: for each layer that was not pruned, the reason.
    """

    cut: Cut
    figures: Mapping[str, Any]
    skipped: Mapping[str, str]


def prune_channels(module: nn.Module, options: PruneOptions, context: Context) -> PrunedChannels:
    """Remove the least important channels of the module until the budget is met, in place.

    Raises what `prune` raises.
    """
    example = make_arguments(context, context.example)
    grouping = find_groups(module, example)
    _select_groups(grouping, module, options)
    trial = Trial(module, example)
    _test_groups(grouping, trial, options, context)
    if not grouping.groups:
        reasons = [f"{name}: {why}" for name, why in list(grouping.skipped.items())[:6]]
        raise ChainError(
            "prune-nothing",
            "no channel of the network can be removed",
            why="; ".join(reasons) or "it has no Linear and no convolution",
            hint="prune:unstructured=0.5 or pattern=2:4, or remove prune from the chain",
        )
    importance, measure = _measure_importance(module, grouping, options, context)
    ranking = Ranking(grouping.groups, importance, options.per_layer, options.round_to)
    slices = _search(module, ranking, options, example, grouping)
    # Every group passed on its own; the cut of all of them together has to pass as well.
    reason = trial.reason(slices)
    if reason:
        raise ChainError(
            "prune-graph",
            "the selected channels cannot be removed together",
            why=reason,
            hint="exclude some layers with exclude=, or use prune:unstructured=0.5",
        )
    # The figures list only layers whose width changed, and the heads that were removed.
    before, widths = _figures(module, example), _layers(module)
    cut(module, slices)
    after, widths_after = _figures(module, example), _layers(module)
    figures: dict[str, Any] = {name: [before[name], after[name]] for name in before}
    figures["by"] = measure
    figures["layers"] = {
        name: [width, widths_after[name]]
        for name, width in widths.items()
        if width != widths_after[name]
    }
    figures["heads"] = {
        group.root.rpartition(".")[0]: [len(group.units), len(group.units) - removed]
        for group in grouping.groups
        if group.heads and (removed := _count_removed(slices, group))
    }
    return PrunedChannels(slices, figures, grouping.skipped)


def _measure_importance(
    module: nn.Module, grouping: Grouping, options: PruneOptions, context: Context
) -> tuple[list[Any], str]:
    """Return the importance of the units of each group, and a description of the measure."""
    if options.importance != "taylor":
        power = 1 if options.importance == "l1" else 2
        norms = by_weights(module, grouping.groups, power)
        return norms, f"the {options.importance} norm of their weights"
    importance, measure = by_taylor(module, grouping.groups, options, context)
    macs = None
    if options.of == "macs":
        macs = count_macs(module, make_arguments(context, context.example))
    # Per unit of the budget: a channel that costs little is worth keeping for a small effect.
    paid = costs(module, grouping.groups, macs)
    return [loss / max(cost, 1.0) for loss, cost in zip(importance, paid, strict=True)], measure


def _count_removed(slices: Cut, group: Group) -> int:
    """Count the units of a group that a cut removes."""
    return len(slices.outputs.get(group.root, ())) // len(group.units[0])


def _select_groups(grouping: Grouping, module: nn.Module, options: PruneOptions) -> None:
    """Drop the groups that include and exclude rule out."""
    names = [n for n, part in module.named_modules() if isinstance(part, (nn.Linear, _ConvNd))]
    selection = select_layers(options.NAME, names, options.include, options.exclude)
    for group in list(grouping.groups):
        layers = [name for name in group.producers if name in names]
        if not selection.issuperset(layers):
            grouping.groups.remove(group)
            grouping.skip(layers, "it, or a layer of its group, is excluded by the options")


def _test_groups(grouping: Grouping, trial: Trial, options: PruneOptions, context: Context) -> None:
    """Drop the groups that fail the trial, or have no smaller multiple of round_to channels."""
    context.progress.expect(len(grouping.groups))
    for group in list(grouping.groups):
        context.progress.tell(group.root)
        # Remove every second unit: a cut of a contiguous half could hide a permutation.
        reason = trial.reason(group.cut(range(0, len(group.units), 2)))
        if not reason and not group.heads and group.channels <= options.round_to:
            reason = f"its {group.channels} channels have no smaller multiple of {options.round_to}"
        if reason:
            grouping.groups.remove(group)
            grouping.skip(group.producers, reason)
        context.progress.advance()


def _search(
    module: nn.Module,
    ranking: Ranking,
    options: PruneOptions,
    example: Sequence[torch.Tensor],
    grouping: Grouping,
) -> Cut:
    """Return the smallest cut that meets the budget, measured on the network without it."""

    def measure(step: int) -> int:
        return _figures(without(module, ranking.cut(step)), example)[options.of]

    total = _figures(module, example)[options.of]
    budget = (1 - options.structured) * total
    # The size falls monotonically with the step, which bisection relies on: about 12 measurements
    # for 4,096 units.
    step = smallest_step(ranking, lambda step: measure(step) <= budget)
    if step is None:
        least = measure(ranking.steps)
        reasons = "; ".join(f"{name}: {why}" for name, why in list(grouping.skipped.items())[:4])
        (alternative,) = set(BUDGETS) - {options.of}
        raise ChainError(
            "prune-budget",
            f"{options.structured:g} of the network's {options.of} cannot be removed",
            why=f"{least:,} of {total:,} remain without every removable channel"
            + (f"; not removable: {reasons}" if reasons else ""),
            hint=f"structured={int(100 * (1 - least / total)) / 100:g} at most, a smaller round_to,"
            f" or of={alternative}",
        )
    return ranking.cut(step)


def _figures(module: nn.Module, example: Sequence[torch.Tensor]) -> dict[str, int]:
    """Return the parameters and the multiply-accumulates of a network."""
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": count_macs(module, example)[""],
    }


def _layers(module: nn.Module) -> dict[str, int]:
    """Return the output channels of each layer by name."""
    return {
        name: getattr(part, "out_channels", None) or part.out_features
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, _ConvNd))
    }
