"""Reorder the input channels of a layer so that few pairs of weights exceed the limit.

Without VNNI two neighbouring u8 x s8 products are added in 16 bits, so that the same-sign sum of
two neighbouring weights is limited (`rounding`). If the order of input channels is free, a large
weight is placed next to a small one or one of the other sign. In a layer with twice as many inputs
as outputs, hardly any pair still exceeds the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack.onnx_tools.axes import Axis
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.scheme import fit_row_scales
from edgepack.passes.quantize.weights.channel_ties import Channels
from edgepack.passes.quantize.weights.rounding import PAIR_STEPS

# Channels that are matched at a time; the costs of all their pairs are in memory.
MOST = 2048
# Limit on the sweeps of the local search, which nearly always ends long before.
SWEEPS = 20


def reorder(
    model: onnx.ModelProto, view: GraphView, layers: Sequence[Layer]
) -> tuple[onnx.ModelProto, int]:
    """Put channels in an order in which few pairs of weights exceed the limit.

    Args:
        model: float32, prepared.
        view: of that model.
        layers: the layers that become integer.

    Returns:
        An equivalent model, up to float rounding, and the number of reordered layers.
    """
    free = Channels(view).free()
    readers: dict[tuple[Axis, ...], list[Layer]] = {}
    for layer in layers:
        constants = free.get((layer.weight, 1 - layer.axis), [])
        if layer.paired and layer.groups == 1 and constants:
            readers.setdefault(tuple(constants), []).append(layer)
    orders: dict[Axis, np.ndarray] = {}
    count = 0
    for axes, sharing in readers.items():
        sizes = {view.shapes[name][axis] for name, axis in axes}
        # With an odd number of channels, pairs shift between kernel positions: with 3 channels they
        # are (0,1) (2,0) (1,2). No order suits all of them.
        aligned = [x for x in sharing if x.channels % 2 == 0 or x.rows.shape[1] == x.channels]
        if len(sizes) == 1 and aligned:
            orders.update(dict.fromkeys(axes, _order(aligned)))
            count += len(aligned)
    return _permute(model, orders), count


def _order(layers: Sequence[Layer]) -> np.ndarray:
    """Return one order of the input channels that these layers share."""
    parts = []
    # Wide layers are ordered in parts, as the costs of n channels take n^2 values.
    for start in range(0, layers[0].channels, MOST):
        costs = [_pair_costs(layer, start, start + MOST) for layer in layers]
        parts.append(start + order_pairs(np.sum(costs, axis=0)))
    return np.concatenate(parts)


def order_pairs(costs: np.ndarray) -> np.ndarray:
    """Return (channels,) an order with low total cost of neighbours.

    Neighbours are at the positions (0, 1), (2, 3), ...; the last of an odd number has none. A
    local search starts from the given order: two pairs exchange partners while that lowers the
    cost.

    Args:
        costs: (channels, channels) costs of being neighbours, symmetric.
    """
    channels = len(costs)
    padded = np.zeros((channels + channels % 2,) * 2, dtype=costs.dtype)
    padded[:channels, :channels] = costs
    pairs = np.arange(len(padded)).reshape(-1, 2)
    for _ in range(SWEEPS):
        if not _improve_pairs(padded, pairs):
            break
    # The channel paired with the padding comes last.
    unpaired = (pairs == channels).any(axis=1)
    order = np.concatenate([pairs[~unpaired], np.sort(pairs[unpaired], axis=1)]).ravel()
    return order[order < channels]


def _improve_pairs(costs: np.ndarray, pairs: np.ndarray) -> bool:
    """Let every pair make its best exchange once; return True if any lowered the cost.

    Pairs (a, b) and (c, d) can become (a, d), (c, b), called crossed, or (a, c), (b, d),
    called straight.
    """
    gained = False
    for pair in range(len(pairs)):
        first, second = pairs[pair]
        others, partners = pairs.T
        # Gains of exchanging with every other pair at once, (pairs,).
        before = costs[first, second] + costs[others, partners]
        crossed = before - costs[first, partners] - costs[second, others]
        straight = before - costs[first, others] - costs[second, partners]
        crossed[pair] = straight[pair] = 0.0
        best = int(np.argmax(np.maximum(crossed, straight)))
        if max(crossed[best], straight[best]) <= 1e-9 * before[best]:
            continue
        # Crossed swaps the second members, straight swaps the second with the first.
        slot = int(crossed[best] >= straight[best])
        pairs[pair, 1], pairs[best, slot] = pairs[best, slot], second
        gained = True
    return gained


def _pair_costs(layer: Layer, start: int, stop: int) -> np.ndarray:
    """Return the squared excess over the limit for every pair of input channels.

    It is summed over output channels and kernel positions, relative to the squared weights.

    Returns:
        (n, n) float32, for the n channels from `start` to before `stop`.
    """
    total = max(float(np.square(layer.rows).sum()), np.finfo(np.float32).tiny)
    scale = fit_row_scales(layer.rows)[:, None]
    positions = layer.rows.shape[1] // layer.channels
    steps = (layer.rows / scale).astype(np.float32).reshape(-1, layer.channels)[:, start:stop]
    weight = np.repeat((scale**2 / total).ravel(), positions).astype(np.float32)
    costs = np.zeros((steps.shape[1],) * 2, dtype=np.float32)
    # A pair over the limit has at least one weight over half of it; if both are, it counts twice.
    large = np.abs(steps) > PAIR_STEPS / 2
    share = np.where(large, np.float32(0.5), np.float32(1.0)) * weight[:, None]
    # Only rows with a large weight in this channel can exceed the limit with another: for each of
    # them, `over` (rows, n) is the excess of its pairs with all n channels.
    for channel in range(len(costs)):
        rows = large[:, channel]
        over = np.abs(steps[rows] + steps[rows, channel, None]) - np.float32(PAIR_STEPS)
        np.maximum(over, 0, out=over)
        costs[channel] = np.einsum("rc,rc,rc->c", over, over, share[rows])
    return costs + costs.T


def _permute(model: onnx.ModelProto, orders: dict[Axis, np.ndarray]) -> onnx.ModelProto:
    """Return a copy with constants permuted along the given axes."""
    result = copied(model)
    for tensor in result.graph.initializer:
        value = numpy_helper.to_array(tensor)
        axes = [axis for axis in range(value.ndim) if (tensor.name, axis) in orders]
        for axis in axes:
            value = np.take(value, orders[tensor.name, axis], axis=axis)
        if axes:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return result
