"""Division of a group into the smallest sets of channels that can be removed. Needs torch."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgepack.passes.prune.cut import is_channelwise
from edgepack.passes.prune.group import Group

# Attribute names of attention modules: number of heads, size of a head, size of all heads.
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
HEAD_SIZES = ("attention_head_size", "head_dim", "head_size", "dim_head")
ALL_HEADS = ("all_head_size", "inner_dim", "inner_size", "embed_dim", "dim", "split_size")


def divide_into_units(group: Group, module: nn.Module) -> tuple[Group, str]:
    """Return the group with its units, and the reason if it has none.

    For 8 channels that feed a convolution in 2 groups, the units are (0, 4), (1, 5), (2, 6) and
    (3, 7): each takes one channel from both groups, so that the groups stay equal in size.
    """
    if not any(part.side == "inputs" for part in group.slices):
        return group, "no layer reads its channels, they are an output of the network"
    parts = _count_parts(group, module)
    if group.channels % parts:
        return group, "the groups of its convolutions have incompatible sizes"
    size, sizes = _find_heads(group, module)
    units = []
    if size:
        # A head is a contiguous block of channels.
        for start in range(0, group.channels, size):
            units.append(tuple(range(start, start + size)))
    else:
        # One channel of every group of a grouped convolution.
        period = group.channels // parts
        for first in range(period):
            units.append(tuple(range(first, group.channels, period)))
    if len(units) < 2:
        return group, "it has a single channel or head"
    return replace(group, units=tuple(units), heads=bool(size), sizes=sizes), ""


def _count_parts(group: Group, module: nn.Module) -> int:
    """Return the number of equal parts of the channels that must stay equal in size.

    Every grouped convolution must keep groups of equal size. With convolutions in 2 and in 3 groups
    there are 6 parts, and a unit has one channel of each.
    """
    parts = 1
    for part in group.slices:
        if part.side != "parameter":
            layer = module.get_submodule(part.name)
            if isinstance(layer, _ConvNd) and not is_channelwise(layer):
                parts = math.lcm(parts, layer.groups)
    return parts


def _find_heads(group: Group, module: nn.Module) -> tuple[int, tuple[tuple[str, str, int], ...]]:
    """Return the channels of an attention head (0 without heads) and the attributes to adjust.

    With num_heads=12 and 768 channels a head has 64; the result is (64, ((name, "num_heads", 1),
    (name, "embed_dim", 64))): the values per head of the attributes to update after a cut.
    """
    name = _find_attention(group, module)
    if name is None:
        return 0, ()

    read_count = partial(_read_count, module.get_submodule(name), group.channels)
    # A stated size is safer than the number of heads: keys and values of grouped-query attention
    # have fewer heads than queries, of the same size.
    size = next(filter(None, map(read_count, HEAD_SIZES)), 0)
    if not size:
        number = next(filter(None, map(read_count, HEADS)), 0)
        if not number:
            return 0, ()
        size = group.channels // number
    updates = []
    # Only attributes with the value before the cut: "dim" may be the width of the whole block.
    for attribute in HEADS:
        if read_count(attribute) == group.channels // size:
            updates.append((name, attribute, 1))
    for attribute in ALL_HEADS:
        if read_count(attribute) == group.channels:
            updates.append((name, attribute, size))
    return size, tuple(updates)


def _read_count(module: nn.Module, channels: int, attribute: str) -> int:
    """Return an attribute of a module if it divides the channels, else 0."""
    value = getattr(module, attribute, 0)
    # A count of 1 says nothing: every number of channels is a multiple of it.
    if isinstance(value, int) and value > 1 and channels % value == 0:
        return value
    return 0


def _find_attention(group: Group, module: nn.Module) -> str | None:
    """Return the name of the module whose Linears produce the channels; None for no attention."""
    parents = []
    for producer in group.producers:
        if isinstance(module.get_submodule(producer), nn.Linear):
            parents.append(producer.rpartition(".")[0])
    # Attention has queries and keys (and values) in one parent; a single Linear has no heads.
    if len(parents) < 2 or len(set(parents)) > 1:
        return None
    return parents[0]
