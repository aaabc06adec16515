"""Estimate the means and second moments of every layer's input, streamed.

For a layer y = W x + b whose input is quantized to q, replacing W by V costs E|W x - V q|^2. With
the bias correction, b' = b + E[W x - V q], the cost depends on the covariance of q; without it, on
E[q q^T]. This module estimates both, and the means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgepack.data.samples import Samples
from edgepack.onnx_tools.stream import tensors
from edgepack.passes.quantize.calibration.histograms import spread
from edgepack.passes.quantize.layers import Layer, Window
from edgepack.passes.quantize.scheme import Affine

# Positions that enter the moments of one layer, over all samples: ten times the usual size of the
# widest reduction axis.
POSITIONS = 12288
FEWEST_A_BATCH, MOST_A_BATCH = 64, 2048
# Memory for second moments; a larger network takes several passes over the samples.
MOMENT_BYTES = 384 * 2**20


@dataclass
class Moments:
    """Sums over the columns that a layer multiplies.

    Attributes:
        count: number of positions.
        real: (groups, K) sum of x.
        quantized: (groups, K) sum of q.
        origin: (groups, K) near the mean of q, so that the squares lose no digits.
        square: (groups, K, K) sum of (q - origin) (q - origin)^T; empty if only means are needed.
    """

    count: int
    real: np.ndarray
    quantized: np.ndarray
    origin: np.ndarray
    square: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(groups, K, K) covariance of q."""
        offset = self.quantized / self.count - self.origin
        return np.asarray(self.square / self.count - offset[:, :, None] * offset[:, None, :])

    @property
    def second(self) -> np.ndarray:
        """(groups, K, K) E[q q^T]."""
        mean = self.quantized / self.count
        return np.asarray(self.covariance + mean[:, :, None] * mean[:, None, :])


def key(layer: Layer) -> tuple[str, Window | None, int]:
    """Return a key that layers share if they multiply the same columns."""
    return layer.input, layer.window, layer.groups


def group_by_memory(layers: Sequence[Layer], squares: bool) -> list[list[Layer]]:
    """Group layers so that the moments of each group fit `MOMENT_BYTES`."""
    if not squares:
        return [list(layers)]
    lots: list[list[Layer]] = []
    available = 0
    keys: set[tuple[str, Window | None, int]] = set()
    for layer in layers:
        # A float64 matrix (K, K) for each group, which layers with the same columns share.
        full = 8 * layer.groups * layer.rows.shape[1] ** 2
        size = 0 if key(layer) in keys else full
        if not lots or size > available:
            lots.append([])
            available, keys = MOMENT_BYTES, set()
            size = full
        lots[-1].append(layer)
        keys.add(key(layer))
        available -= size
    return lots


def observe_moments(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    groups: Sequence[Sequence[str]],
    quantization: Mapping[str, Affine],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
    count: int,
    squares: bool,
) -> dict[tuple[str, Window | None, int], Moments]:
    """Estimate the moments of the inputs of one group of layers.

    Args:
        model: float32, prepared.
        layers: one of `group_by_memory`.
        groups: their inputs, in groups that fit in memory.
        quantization: of every input that is quantized on the device.
        samples: the calibration samples.
        batch_size: samples per run.
        advance: receives the number of samples after each batch.
        count: number of samples; with more of them, fewer positions of each are used.
        squares: True to estimate second moments in addition to the means.
    """
    readers: dict[str, dict[tuple[str, Window | None, int], Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, {}).setdefault(key(layer), layer)
    moments: dict[tuple[str, Window | None, int], Moments] = {}
    # 100 samples in batches of 4: each batch adds 12288 * 4 // 100 = 491 positions.
    share = POSITIONS * batch_size // count
    most = min(max(share, FEWEST_A_BATCH), MOST_A_BATCH)
    runs = tensors(model, groups, samples, batch_size, advance)
    for number, arrays in runs:
        for name, values in arrays.items():
            for layer_key, layer in readers[name].items():
                real = columns(layer, values, most, number)
                quantized = real
                if name in quantization:
                    # Zero is represented exactly, so the zeros of a padded border stay.
                    quantized = quantization[name].fake(real)
                _add(moments, layer_key, real, quantized, squares)
    return moments


def _add(
    moments: dict[tuple[str, Window | None, int], Moments],
    layer_key: tuple[str, Window | None, int],
    real: np.ndarray,
    quantized: np.ndarray,
    squares: bool,
) -> None:
    """Add one batch of columns, (groups, positions, K), to the moments of a key."""
    groups, count, width = quantized.shape
    if not count:
        # The tensor is empty on these samples and has no mean to use as the origin.
        return
    if layer_key not in moments:
        square = np.zeros((groups, width, width) if squares else (0, 0, 0))
        sums = np.zeros((2, groups, width))
        origin = quantized.mean(axis=1, dtype=np.float64).astype(np.float32).astype(np.float64)
        moments[layer_key] = Moments(0, sums[0], sums[1], origin, square)
    # With the origin near the mean, E[(q - o)(q - o)^T] - (E[q] - o)(E[q] - o)^T loses few digits
    # even if the mean is much larger than the spread.
    into = moments[layer_key]
    into.count += count
    into.real += real.sum(axis=1, dtype=np.float64)
    into.quantized += quantized.sum(axis=1, dtype=np.float64)
    if squares:
        centred = quantized - into.origin[:, None, :].astype(np.float32)
        into.square += centred.transpose(0, 2, 1) @ centred


def columns(layer: Layer, values: np.ndarray, most: int, offset: int) -> np.ndarray:
    """Return (groups, positions, K): the values that each row of the layer multiplies.

    There are about `most` positions at most, evenly spread; `offset` moves their start. Example: a
    3 x 3 convolution over (1, 8, 32, 32) with padding 1 has 1,024 positions and K = 72.
    """
    if layer.window is None:
        return spread(values.reshape(-1, values.shape[-1]), most, offset)[None]
    window = layer.window
    spatial = values.shape[2:]
    padded = np.pad(values, [(0, 0), (0, 0), *window.padding(spatial)])
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    axes = tuple(range(2, values.ndim))
    # The windows are views: only the selected positions are copied.
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    strided = [slice(None), slice(None)]
    strided += [slice(None, None, s) for s in window.strides]
    strided += [slice(None, None, d) for d in window.dilations]
    view = view[tuple(strided)]
    # (batch, positions..., kernel..., channels)
    view = np.moveaxis(view, 1, -1)
    sizes = view.shape[: len(axes) + 1]
    positions = spread(np.arange(int(np.prod(sizes))), most, offset)
    patches = view[np.unravel_index(positions, sizes)]
    patches = patches.reshape(len(positions), -1, layer.groups, layer.channels // layer.groups)
    return np.ascontiguousarray(
        patches.transpose(2, 0, 1, 3).reshape(layer.groups, len(positions), -1)
    )
