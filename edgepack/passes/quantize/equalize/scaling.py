"""Scale channels between layers, so that a tensor's one scale fits all of them.

A tensor has one scale for all of its channels, and its largest channel sets it. Dividing channel j
by s_j in its producer, and multiplying the weights that read it by s_j, moves the difference to the
weights, which have a scale for each output channel. With A_j the largest magnitude of channel j
relative to its tensor's largest, and B_j the largest weight that reads it, relative to the largest
of the weight's row,

    s_j = A_j^alpha / B_j^(1 - alpha)

as in SmoothQuant (Xiao et al., 2022, arXiv:2211.10438). Between layers that is cross-layer
equalization (Nagel et al., 2019, arXiv:1906.04721), with the magnitudes of activations in place of
those of the weights that produce them: these have a scale for every row, which absorbs any factor.
Tensors that only depthwise convolutions read are divided by A_j, as their weights also absorb any
factor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack.data.samples import Samples
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.equalize.classes import Classes, Reader, Scalable
from edgepack.passes.quantize.equalize.magnitudes import ChannelMagnitudes, observe_channels
from edgepack.passes.quantize.equalize.restorers import insert_restorers, remove_idle_restorers
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import LEVELS

# Limit on the factor of a channel that is almost always 0.
MOST = 64.0
TINY = float(np.finfo(np.float32).tiny)


def equalize(
    model: onnx.ModelProto,
    points: Collection[str],
    samples: Samples,
    options: QuantizeOptions,
    advance: Callable[[int], None],
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Scale channels if that is exact and lowers the estimated noise.

    Args:
        model: float32, prepared.
        points: tensors that will be quantized.
        samples: the calibration samples.
        options: equalize (not "none"), alpha and batch_size.
        advance: receives the number of samples after each batch.

    Returns:
        An equivalent model, up to float rounding, and the figures for the ledger.
    """
    kind = options.equalize
    candidate = model
    if kind != "cross-layer":
        candidate = insert_restorers(model)
    view = GraphView(candidate)
    free, blocked = Classes(view).collect()
    selected: list[Scalable] = []
    axes: dict[str, int] = {}
    for scalable in free:
        if kind in ("both", _classify_equalization(view, scalable)):
            selected.append(scalable)
            # Tensors that stay float have no steps to choose, and are not measured.
            for name, axis in scalable.tensors.items():
                if name in points:
                    axes[name] = axis
    magnitudes = observe_channels(candidate, view, axes, samples, options.batch_size, advance)
    # A class is scaled only if the estimated noise falls below that without factors.
    factors: list[tuple[Scalable, np.ndarray]] = []
    for scalable in selected:
        tensors = [magnitudes[name] for name in scalable.tensors if name in magnitudes]
        weights = [_read_weights(view, reader) for reader in scalable.readers]
        factor = _choose_factor(tensors, weights, options.alpha) if tensors else None
        if factor is None:
            blocked["it is not quantized, or is always 0"] += 1
        elif _estimate_noise(tensors, weights, factor) < _estimate_noise(
            tensors, weights, np.ones_like(factor)
        ):
            factors.append((scalable, factor))
        else:
            blocked["scaling would not lower the noise"] += 1
    channels, ratios = 0, []
    for _, factor in factors:
        channels += len(factor)
        ratios.append(float(factor.max() / factor.min()))
    figures = {
        "kind": kind,
        "alpha": options.alpha,
        "scaled": len(factors),
        "channels": channels,
        "widest": round(max(ratios, default=1.0), 2),
        "left": dict(blocked),
    }
    return remove_idle_restorers(_scale_constants(candidate, factors)), figures


def _classify_equalization(view: GraphView, scalable: Scalable) -> str:
    """Return "smooth" for the outputs of a LayerNormalization, else "cross-layer"."""
    for maker in scalable.makers:
        if view.nodes[maker].op_type == "LayerNormalization":
            return "smooth"
    return "cross-layer"


@dataclass(frozen=True)
class _Weights:
    """Weights that read a class.

    Attributes:
        rows: (outputs, channels, positions); (1, channels, positions) if each channel
            has its own scale.
        channel_scales: see `Reader`.
    """

    rows: np.ndarray
    channel_scales: bool


def _read_weights(view: GraphView, reader: Reader) -> _Weights:
    values = np.asarray(view.constant(reader.weight), dtype=np.float64)
    # A Gemm's (inputs, outputs) has the channels at axis 0 and gives (outputs, inputs, 1). Conv
    # weights (16, 8, 3, 3) have them at axis 1 and give rows of (16, 8, 9).
    moved = np.moveaxis(values, reader.axis, 0)
    columns = moved.reshape(len(moved), 1 if reader.channel_scales else moved.shape[1], -1)
    return _Weights(columns.transpose(1, 0, 2), reader.channel_scales)


def _choose_factor(
    tensors: Sequence[ChannelMagnitudes], weights: Sequence[_Weights], alpha: float
) -> np.ndarray | None:
    """Return (channels,) the divisor of each channel; None if it is undefined."""
    size = np.max(
        [magnitudes.largest / max(magnitudes.largest.max(), TINY) for magnitudes in tensors], axis=0
    )
    if not np.isfinite(size).all() or not size.any():
        # NaN and infinity raise an error later, when the ranges are observed.
        return None
    size = np.maximum(size, 1 / MOST)
    shared = [read.rows for read in weights if not read.channel_scales]
    if not shared:
        return np.asarray(size)
    reach = np.max([_measure_reach(rows) for rows in shared], axis=0)
    result = size**alpha / np.maximum(reach, 1 / MOST) ** (1 - alpha)
    if not np.isfinite(result).all():
        return None
    return np.asarray(result)


def _measure_reach(rows: np.ndarray) -> np.ndarray:
    """Return (channels,) the largest weight of each column, relative to its row's largest."""
    largest = np.abs(rows).max(axis=2)
    return np.asarray((largest / np.maximum(largest.max(axis=1, keepdims=True), TINY)).max(axis=0))


def _estimate_noise(
    tensors: Sequence[ChannelMagnitudes], weights: Sequence[_Weights], factor: np.ndarray
) -> float:
    """Estimate the noise of 8-bit rounding in the outputs of the layers, in arbitrary units.

    Activations contribute step^2 / 12 in every channel, times the squared weights that read it;
    weights contribute step^2 / 12 of their row, times the power of their inputs.
    """
    total = 0.0
    # Dividing a channel lowers the noise of its tensor's step in all other channels, and
    # multiplying its weights raises the steps of the rows that read it.
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
    """Return a copy with divided constants in the producers and multiplied ones in the readers."""
    # One constant may have several factors: the weights of a layer between two classes are divided
    # by those of its output and multiplied by those of its input.
    powers: dict[str, list[tuple[int, np.ndarray]]] = {}
    for scalable, factor in factors:
        for name, axis in scalable.constants:
            powers.setdefault(name, []).append((axis, 1 / factor))
        for reader in scalable.readers:
            powers.setdefault(reader.weight, []).append((reader.axis, factor))
    result = copied(model)
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
