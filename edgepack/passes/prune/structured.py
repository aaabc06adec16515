"""Structured pruning of channels, filters and heads. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from edgepack.errors import ChainError
from edgepack.passes.module import ModuleContext
from edgepack.passes.network import count_macs, make_arguments, select_layers
from edgepack.passes.prune.channel_groups import Grouping, find_groups
from edgepack.passes.prune.cut import Cut, cut
from edgepack.passes.prune.cut_check import Trial
from edgepack.passes.prune.group import Group
from edgepack.passes.prune.importance import compute_costs, score_by_taylor, score_by_weights
from edgepack.passes.prune.layers import find_weighted_layers, join_reasons
from edgepack.passes.prune.options import BUDGETS, PruneOptions
from edgepack.passes.prune.search import Ranking, copy_without, find_smallest_step

if TYPE_CHECKING:
    import torch
    from torch import nn


class ChannelFigures(TypedDict):
    """Figures for the ledger; pairs are values before and after.

    Attributes:
        parameters: of the network.
        macs: multiply-accumulates of one call.
        by: description of the measure of importance.
        layers: output channels of the layers whose width changed.
        heads: attention heads of the modules that lost some.
    """

    parameters: list[int]
    macs: list[int]
    by: str
    layers: dict[str, list[int]]
    heads: dict[str, list[int]]


@dataclass(frozen=True)
class PrunedChannels:
    """Result of structured pruning.

    Attributes:
        cut: the slices that were removed.
        figures: for the ledger.
        skipped: for each layer that was not pruned, the reason.
    """

    cut: Cut
    figures: ChannelFigures
    skipped: Mapping[str, str]


def prune_channels(
    module: nn.Module, options: PruneOptions, context: ModuleContext
) -> PrunedChannels:
    """Remove the least important channels of the module until the budget is met, in place.

    Raises what `prune` raises.
    """
    example = make_arguments(context, context.example)
    grouping = find_groups(module, example)
    _select_groups(grouping, module, options)
    trial = Trial(module, example)
    _test_groups(grouping, trial, options, context)
    if not grouping.groups:
        raise ChainError(
            "prune-nothing",
            "no channel of the network can be removed",
            why=join_reasons(grouping.skipped, 6) or "it has no Linear and no convolution",
            hint="prune:unstructured=0.5 or pattern=2:4, or remove prune from the chain",
        )
    importance, measure = _measure_importance(module, grouping, options, context)
    ranking = Ranking(grouping.groups, importance, options.per_layer, options.round_to)
    slices = _search(module, ranking, options, example, grouping)
    # Every group passed on its own; the cut of all of them together has to pass as well.
    reason = trial.reject(slices)
    if reason:
        raise ChainError(
            "prune-graph",
            "the selected channels cannot be removed together",
            why=reason,
            hint="exclude some layers with exclude=, or use prune:unstructured=0.5",
        )
    before, widths = _measure_size(module, example), _list_widths(module)
    cut(module, slices)
    after = _measure_size(module, example)
    figures: ChannelFigures = {
        "parameters": [before["parameters"], after["parameters"]],
        "macs": [before["macs"], after["macs"]],
        "by": measure,
        "layers": _compare_widths(widths, _list_widths(module)),
        "heads": _count_heads(grouping.groups, slices),
    }
    return PrunedChannels(slices, figures, grouping.skipped)


def _compare_widths(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the output channels before and after of the layers whose width changed."""
    changes = {}
    for name, width in before.items():
        if width != after[name]:
            changes[name] = [width, after[name]]
    return changes


def _count_heads(groups: Sequence[Group], slices: Cut) -> dict[str, list[int]]:
    """Return the heads before and after of the attention modules that lose some.

    A query layer "block.attention.query" of 12 heads that loses 4 gives
    {"block.attention": [12, 8]}.
    """
    heads = {}
    for group in groups:
        removed = _count_removed(slices, group)
        if group.heads and removed:
            module_name = group.root.rpartition(".")[0]
            heads[module_name] = [len(group.units), len(group.units) - removed]
    return heads


def _measure_importance(
    module: nn.Module, grouping: Grouping, options: PruneOptions, context: ModuleContext
) -> tuple[list[torch.Tensor], str]:
    """Return the importance of the units of each group, and a description of the measure."""
    if options.importance != "taylor":
        power = 1 if options.importance == "l1" else 2
        norms = score_by_weights(module, grouping.groups, power)
        return norms, f"the {options.importance} norm of their weights"
    importance, measure = score_by_taylor(module, grouping.groups, options, context)
    macs = None
    if options.of == "macs":
        macs = count_macs(module, make_arguments(context, context.example))
    # Per unit of the budget: a channel that costs little is worth keeping for a small effect.
    ratios = []
    costs = compute_costs(module, grouping.groups, macs)
    for loss, cost in zip(importance, costs, strict=True):
        ratios.append(loss / max(cost, 1.0))
    return ratios, measure


def _count_removed(slices: Cut, group: Group) -> int:
    """Count the units of a group that a cut removes."""
    # All units of a group have equally many channels.
    return len(slices.outputs.get(group.root, ())) // len(group.units[0])


def _select_groups(grouping: Grouping, module: nn.Module, options: PruneOptions) -> None:
    """Drop the groups that include and exclude rule out."""
    # Batch norms and embeddings follow the layers of their group; options do not select them.
    names = list(find_weighted_layers(module))
    selection = select_layers(options.NAME, names, options.include, options.exclude)
    for group in list(grouping.groups):
        layers = [name for name in group.producers if name in names]
        if not selection.issuperset(layers):
            grouping.groups.remove(group)
            grouping.skip(layers, "it, or a layer of its group, is excluded by the options")


def _test_groups(
    grouping: Grouping, trial: Trial, options: PruneOptions, context: ModuleContext
) -> None:
    """Drop the groups that fail the trial, or have no smaller multiple of round_to channels."""
    context.progress.expect(len(grouping.groups))
    for group in list(grouping.groups):
        context.progress.tell(group.root)
        # Remove every second unit: a cut of a contiguous half could hide a permutation.
        reason = trial.reject(group.cut(range(0, len(group.units), 2)))
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
        return _measure_size(copy_without(module, ranking.cut(step)), example)[options.of]

    total = _measure_size(module, example)[options.of]
    budget = (1 - options.structured) * total
    # The size falls monotonically with the step, which bisection relies on: about 12 measurements
    # for 4,096 units.
    step = find_smallest_step(ranking, lambda step: measure(step) <= budget)
    if step is None:
        least = measure(ranking.steps)
        why = f"{least:,} of {total:,} remain without every removable channel"
        if grouping.skipped:
            why += f"; not removable: {join_reasons(grouping.skipped, 4)}"
        (alternative,) = set(BUDGETS) - {options.of}
        raise ChainError(
            "prune-budget",
            f"{options.structured:g} of the network's {options.of} cannot be removed",
            why=why,
            # Rounded down to a percentage, since the next larger one would fail again.
            hint=f"structured={int(100 * (1 - least / total)) / 100:g} at most, a smaller round_to,"
            f" or of={alternative}",
        )
    return ranking.cut(step)


def _measure_size(module: nn.Module, example: Sequence[torch.Tensor]) -> dict[str, int]:
    """Return the parameters and the multiply-accumulates of a network."""
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": count_macs(module, example)[""],
    }


def _list_widths(module: nn.Module) -> dict[str, int]:
    """Return the output channels of each layer by name."""
    widths = {}
    for name, layer in find_weighted_layers(module).items():
        widths[name] = getattr(layer, "out_channels", None) or layer.out_features
    return widths
