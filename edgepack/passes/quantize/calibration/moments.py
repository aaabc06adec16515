"""Estimate the means and second moments of every layer's input, streamed.

For a layer y = W x + b whose input is quantized to q, replacing W by V costs E|W x - V q|^2. With
the bias correction, b' = b + E[W x - V q], the cost depends on the covariance of q; without it, on
E[q q^T]. This module estimates both, and the means.

Bias correction is that of Nagel et al., "Data-free quantization through weight equalization and
bias correction" (2019), with measured means: E[x] of the float network, and E[q] of the same values
after quantization. Since earlier layers are corrected in the same way, the means of a layer's input
are those of the float network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgepack.data.samples import Samples
from edgepack.ledger import Progress
from edgepack.onnx_tools.stream import grouped, tensors
from edgepack.passes.quantize.calibration.activations import (
    count_elements,
    cover_ranges,
    observe_ranges,
    spread,
)
from edgepack.passes.quantize.layers import Layer, Window
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import Affine

# Positions that enter the moments of one layer, over all samples: ten times the usual size of the
# widest reduction axis.
POSITIONS = 12288
FEWEST_A_BATCH, MOST_A_BATCH = 64, 2048
# Memory for second moments; a larger network takes several passes over the samples.
MOMENT_BYTES = 384 * 2**20

# Input of a layer, its window and its number of groups.
ColumnKey = tuple[str, "Window | None", int]
# A layer, the quantization of its input (None: float), and the input's moments (None: unknown).
ObservedLayer = tuple[Layer, "Affine | None", "Moments | None"]


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

    def mean_error(self, layer: Layer, effective: np.ndarray) -> np.ndarray:
        """Return (outputs,) E[W x - V q], to be added to the bias of a layer.

        Args:
            layer: with its real weights W as rows.
            effective: (outputs, K) weights V that the integers represent.
        """
        # The means are per group, (groups, K), and the rows (groups, outputs of the group, K).
        real, quantized = self.real / self.count, self.quantized / self.count
        float_output = np.einsum("grk,gk->gr", layer.per_group(layer.rows), real)
        integer_output = np.einsum("grk,gk->gr", layer.per_group(effective), quantized)
        return np.asarray((float_output - integer_output).ravel())


def column_key(layer: Layer) -> ColumnKey:
    """Return a key that layers share if they multiply the same columns."""
    return layer.input, layer.window, layer.groups


def group_layers(layers: Sequence[Layer], options: QuantizeOptions) -> list[list[Layer]]:
    """Group layers by the passes over the samples that their weights need.

    The second moments of each group fit `MOMENT_BYTES`. There is no group if neither rounding nor
    bias correction reads samples.
    """
    if options.rounding != "gptq":
        return [list(layers)] if options.bias_correction else []
    lots: list[list[Layer]] = []
    available = 0
    keys: set[ColumnKey] = set()
    for layer in layers:
        # A float64 matrix (K, K) for each group, which layers with the same columns share.
        full = 8 * layer.groups * layer.rows.shape[1] ** 2
        size = 0 if column_key(layer) in keys else full
        if not lots or size > available:
            lots.append([])
            available, keys = MOMENT_BYTES, set()
            size = full
        lots[-1].append(layer)
        keys.add(column_key(layer))
        available -= size
    return lots


def observe_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples | None,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[int, Iterator[ObservedLayer]]:
    """Observe the inputs of layers in the modes without stored ranges.

    Args:
        model: float32, prepared.
        layers: layers whose weights will be rounded.
        samples: calibration samples; None if the options need none.
        options: mode, rounding and bias correction.
        progress: receives the number of samples run.

    Returns:
        The number of samples, and every layer with its input's statistics.
    """
    if samples is None or not (layers and options.needs):
        return 0, ((layer, None, None) for layer in layers)
    inputs = _list_inputs(layers)
    ranges, count = observe_ranges(model, inputs, samples, options.batch_size, progress.advance)
    # Ranges taken at run time on these samples are at most these.
    of_input: dict[str, Affine] = {}
    if options.mode == "dynamic":
        of_input = cover_ranges(ranges, options.scheme)
    # One pass over the samples for the ranges, and one for each group of layers.
    lots = group_layers(layers, options)
    progress.expect(count * (1 + len(lots)))
    elements = count_elements(ranges)
    return count, observe_moments(
        model, lots, elements, of_input, samples, count, options, progress.advance
    )


def _list_inputs(layers: Iterable[Layer]) -> list[str]:
    """Return the inputs of layers, each once, in order: query, key and value read one tensor."""
    inputs: dict[str, None] = {}
    for layer in layers:
        inputs[layer.input] = None
    return list(inputs)


def observe_moments(
    model: onnx.ModelProto,
    lots: Sequence[Sequence[Layer]],
    elements: Mapping[str, int],
    quantization: Mapping[str, Affine],
    samples: Samples,
    count: int,
    options: QuantizeOptions,
    advance: Callable[[int], None],
) -> Iterator[ObservedLayer]:
    """Estimate the moments of the inputs of layers, one group of layers at a time.

    The moments of all groups together may not fit in memory, so a group's are not kept.

    Args:
        model: float32, prepared.
        lots: groups of layers, from `group_layers`.
        elements: size of the largest batch of every input.
        quantization: of every input that is quantized on the device.
        samples: the calibration samples.
        count: number of samples; with more of them, fewer positions of each are used.
        options: rounding and batch_size.
        advance: receives the number of samples after each batch.
    """
    for lot in lots:
        groups = grouped(_list_inputs(lot), elements)
        runs = tensors(model, groups, samples, options.batch_size, advance)
        moments = _sum_moments(lot, runs, quantization, count, options)
        for layer in lot:
            yield layer, quantization.get(layer.input), moments[column_key(layer)]


def _sum_moments(
    layers: Sequence[Layer],
    runs: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    quantization: Mapping[str, Affine],
    count: int,
    options: QuantizeOptions,
) -> dict[ColumnKey, Moments]:
    """Sum the moments of the layers' inputs over all batches."""
    readers: dict[str, dict[ColumnKey, Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, {}).setdefault(column_key(layer), layer)
    moments: dict[ColumnKey, Moments] = {}
    # 100 samples in batches of 4: each batch adds 12288 * 4 // 100 = 491 positions.
    share = POSITIONS * options.batch_size // count
    most = min(max(share, FEWEST_A_BATCH), MOST_A_BATCH)
    for number, arrays in runs:
        for name, values in arrays.items():
            for layer_key, layer in readers[name].items():
                real = extract_columns(layer, values, most, number)
                quantized = real
                if name in quantization:
                    # Zero is represented exactly, so the zeros of a padded border stay.
                    quantized = quantization[name].fake(real)
                _add(moments, layer_key, real, quantized, squares=options.rounding == "gptq")
    return moments


def _add(
    moments: dict[ColumnKey, Moments],
    layer_key: ColumnKey,
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


def extract_columns(layer: Layer, values: np.ndarray, most: int, offset: int) -> np.ndarray:
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
    # Strides thin out the positions, dilations the kernel: view[:, :, ::2, ::2, ::1, ::1].
    strided = [slice(None), slice(None)]
    for step in (*window.strides, *window.dilations):
        strided.append(slice(None, None, step))
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
