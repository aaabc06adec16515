"""Channels of like size: factors between layers, so that a tensor's one scale fits all of them.

A tensor has one scale for all of its channels, and its largest channel sets it. Dividing channel j
by s_j where it is made, and multiplying the weights that read it by s_j, moves the difference into
the weights, which have a scale for each output channel. With A_j the largest magnitude of channel
j, of its tensor's largest, and B_j the largest of the weights that read it, each of its own row's
largest,

    s_j = A_j^alpha / B_j^(1 - alpha)

as in SmoothQuant (Xiao et al., 2022, arXiv:2211.10438). Between layers that is cross-layer
equalization (Nagel et al., 2019, arXiv:1906.04721), with what the activations hold in place of
the weights that make them: those have a scale for every row, which takes any factor. What depthwise
convolutions alone read is divided by A_j: theirs take any factor too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack.chain.graphs.view import GraphView
from edgepack.chain.quantize.equalize.classes import Classes, Reader, Scalable
from edgepack.chain.quantize.equalize.restore import with_restorers, without_idle_restorers
from edgepack.chain.quantize.equalize.seen import ChannelMagnitudes, observe_channels
from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.scheme import LEVELS
from edgepack.data.samples import Samples

# A channel that is hardly ever anything is not blown up beyond this.
MOST = 64.0
TINY = float(np.finfo(np.float32).tiny)


def equalize(
    model: onnx.ModelProto,
    points: Collection[str],
    samples: Samples,
    options: QuantizeOptions,
    advance: Callable[[int], None],
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Scale channels where that is exact and promises less noise.

    Args:
        model: float32, prepared.
        points: the tensors that will be quantized.
        samples: the calibration samples.
        options: equalize, other than "none", alpha and batch_size.
        advance: told the number of samples when a batch is done.

    Returns:
        a model that computes the same, up to float rounding, and the figures for the ledger.
    """
    kind = options.equalize
    candidate = model if kind == "cross-layer" else with_restorers(model)
    view = GraphView(candidate)
    free, blocked = Classes(view).collect()
    selected = [
        scalable for scalable in free if kind in ("both", _equalization_kind(view, scalable))
    ]
    axes = {name: axis for scalable in selected for name, axis in scalable.tensors.items()}
    axes = {name: axis for name, axis in axes.items() if name in points}
    magnitudes = observe_channels(candidate, view, axes, samples, options.batch_size, advance)
    factors: list[tuple[Scalable, np.ndarray]] = []
    for scalable in selected:
        tensors = [magnitudes[name] for name in scalable.tensors if name in magnitudes]
        weights = [_read_weights(view, reader) for reader in scalable.readers]
        factor = _choose_factor(tensors, weights, options.alpha) if tensors else None
        if factor is None:
            blocked["nothing of it is quantized, or ever other than 0"] += 1
        elif _estimate_noise(tensors, weights, factor) < _estimate_noise(
            tensors, weights, np.ones_like(factor)
        ):
            factors.append((scalable, factor))
        else:
            blocked["it promises no less noise"] += 1
    ratios = [float(factor.max() / factor.min()) for _, factor in factors]
    figures = {
        "kind": kind,
        "alpha": options.alpha,
        "scaled": len(factors),
        "channels": sum(len(factor) for _, factor in factors),
        "widest": round(max(ratios, default=1.0), 2),
        "left": dict(blocked),
    }
    return without_idle_restorers(_scale_constants(candidate, factors)), figures


def _equalization_kind(view: GraphView, scalable: Scalable) -> str:
    """ "smooth" where a LayerNormalization makes the tensors, else "cross-layer"."""
    norms = any(view.nodes[i].op_type == "LayerNormalization" for i in scalable.makers)
    return "smooth" if norms else "cross-layer"


@dataclass(frozen=True)
class _Weights:
    """What reads a class.

    Attributes:
        rows: (outputs, channels, positions); (1, channels, positions) where each is read channel_scales.
        channel_scales: as `Reader` has it.
    """

    rows: np.ndarray
    channel_scales: bool


def _read_weights(view: GraphView, reader: Reader) -> _Weights:
    values = np.asarray(view.constant(reader.weight), dtype=np.float64)
    moved = np.moveaxis(values, reader.axis, 0)
    columns = moved.reshape(len(moved), 1 if reader.channel_scales else moved.shape[1], -1)
    return _Weights(columns.transpose(1, 0, 2), reader.channel_scales)


def _choose_factor(
    tensors: Sequence[ChannelMagnitudes], weights: Sequence[_Weights], alpha: float
) -> np.ndarray | None:
    """(channels,) what each channel is divided by; None where that cannot be told."""
    size = np.max(
        [magnitudes.largest / max(magnitudes.largest.max(), TINY) for magnitudes in tensors], axis=0
    )
    if not np.isfinite(size).all() or not size.any():
        # NaN is told of when the ranges are observed.
        return None
    size = np.maximum(size, 1 / MOST)
    shared = [read.rows for read in weights if not read.channel_scales]
    if not shared:
        return np.asarray(size)
    reach = np.max([_reach(rows) for rows in shared], axis=0)
    result = size**alpha / np.maximum(reach, 1 / MOST) ** (1 - alpha)
    return np.asarray(result) if np.isfinite(result).all() else None


def _reach(rows: np.ndarray) -> np.ndarray:
    """(channels,) the largest weight of each column, each of its own row's largest."""
    largest = np.abs(rows).max(axis=2)
    return np.asarray((largest / np.maximum(largest.max(axis=1, keepdims=True), TINY)).max(axis=0))


def _estimate_noise(
    tensors: Sequence[ChannelMagnitudes], weights: Sequence[_Weights], factor: np.ndarray
) -> float:
    """The noise that rounding to 8 bits leaves in what the layers give, in arbitrary units.

    That of the activations, a step^2 / 12 in every channel times the weights that read it; and
    that of the weights, a step^2 / 12 of their row times what they read.
    """
    total = 0.0
    for read in weights:
        rows = read.rows
        gain = np.square(rows).sum(axis=(0, 2)) @ np.square(factor)
        total += gain * sum(
            float((magnitudes.largest / factor).max() / LEVELS) ** 2 for magnitudes in tensors
        )
        if not read.channel_scales:
            steps = (np.abs(rows).max(axis=2) * factor).max(axis=1) / (LEVELS / 2)
            power = np.mean([magnitudes.square for magnitudes in tensors], axis=0) / np.square(
                factor
            )
            total += float(np.square(steps).sum() * power.sum() * rows.shape[2])
    return total


def _scale_constants(
    model: onnx.ModelProto, factors: Sequence[tuple[Scalable, np.ndarray]]
) -> onnx.ModelProto:
    """A copy whose constants are divided where a class is made and multiplied where it is read."""
    powers: dict[str, list[tuple[int, np.ndarray]]] = {}
    for scalable, factor in factors:
        for name, axis in scalable.constants:
            powers.setdefault(name, []).append((axis, 1 / factor))
        for reader in scalable.readers:
            powers.setdefault(reader.weight, []).append((reader.axis, factor))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in powers:
            stored = numpy_helper.to_array(tensor)
            value = stored.astype(np.float64)
            for axis, factor in powers[tensor.name]:
                shape = [1] * value.ndim
                shape[axis] = -1
                value = value * factor.reshape(shape)
            tensor.CopyFrom(numpy_helper.from_array(value.astype(stored.dtype), tensor.name))
    return result
