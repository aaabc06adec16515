"""Run the samples once, and collect all that the quantization needs to know of the activations.

Ranges, histograms and moments come from the same run: bins grow with the range, and the moments are
those of real values, to which the effect of quantization is added once it is chosen. Memory does
not depend on the number of samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.onnx_tools import stream
from edgepack.onnx_tools.copies import copied
from edgepack.passes.quantize.calibration.calibrators import GrowingHistogram
from edgepack.passes.quantize.calibration.columns import spread
from edgepack.passes.quantize.calibration.moments import ChannelRows, ColumnSums, Moments
from edgepack.passes.quantize.calibration.partition import ColumnKey, Partition, column_key
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.scheme import Affine
from edgepack.passes.quantize.workers import open_workers

# Values of one sample that enter the histogram of a tensor; larger tensors are subsampled evenly.
COUNTED = 2**13
# Memory for the channels' values from which their mean errors come, and bounds of their number.
ROW_BYTES, FEWEST_ROWS, MOST_ROWS = 32 * 2**20, 64, 1024


@dataclass
class Range:
    """Exact range of a tensor over all samples.

    Attributes:
        low, high: smallest and largest value.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Interest:
    """Tensors and layers to observe.

    Attributes:
        points: tensors whose range is wanted.
        histograms: whether their histograms are wanted, too.
        layers: layers whose moments are wanted.
        partitions: of the columns of these layers.
        errors: inputs of layers that will be quantized.
    """

    points: Sequence[str]
    histograms: bool
    layers: Sequence[Layer] = ()
    partitions: Mapping[ColumnKey, Partition] = field(default_factory=dict)
    errors: frozenset[str] = frozenset()


class Tensor:
    """Statistics of one tensor."""

    def __init__(
        self, name: str, interest: Interest, readers: Sequence[ColumnSums], rows: int
    ) -> None:
        self.range = Range(np.inf, -np.inf)
        self.histogram = GrowingHistogram()
        self.sums = readers
        self.rows = ChannelRows(rows)
        self._counted = interest.histograms and name in interest.points
        self._erring = name in interest.errors
        self.spatial = False

    def add(self, values: np.ndarray, samples: int, number: int) -> bool:
        """Take one batch; return False if it has NaN or infinity."""
        if not values.size:
            return True
        low, high = float(values.min()), float(values.max())
        # NaN among the values makes both NaN.
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        self.range.low, self.range.high = min(self.range.low, low), max(self.range.high, high)
        if self._counted:
            part = spread(values.ravel(), COUNTED * samples, number)
            self.histogram.add(part, low, high)
        for sums in self.sums:
            sums.add(values, samples, number)
        if self._erring:
            self.rows.add(values, self.spatial, samples, number)
        return True


class Observations:
    """Statistics of all tensors of interest.

    Attributes:
        count: number of samples.
        ranges: of the points.
    """

    def __init__(self, interest: Interest) -> None:
        self.count = 0
        self._interest = interest
        self._sums: dict[ColumnKey, ColumnSums] = {}
        self._moments: dict[ColumnKey, Moments] = {}
        # Readers of the moments that are still to come.
        self._readers: Counter[ColumnKey] = Counter(map(column_key, interest.layers))
        readers: dict[str, list[ColumnSums]] = {}
        spatial: set[str] = set()
        for layer in interest.layers:
            key = column_key(layer)
            if key in self._sums:
                continue
            self._sums[key] = ColumnSums(layer, interest.partitions[key])
            readers.setdefault(layer.input, []).append(self._sums[key])
            if layer.window is not None:
                spatial.add(layer.input)
        channels = 0
        for layer in interest.layers:
            channels += layer.channels
        rows = int(np.clip(ROW_BYTES // (4 * max(channels, 1)), FEWEST_ROWS, MOST_ROWS))
        self.tensors: dict[str, Tensor] = {}
        for name in dict.fromkeys((*interest.points, *readers)):
            self.tensors[name] = Tensor(name, interest, readers.get(name, ()), rows)
            self.tensors[name].spatial = name in spatial

    @property
    def ranges(self) -> dict[str, Range]:
        """Ranges of the points."""
        return {name: self.tensors[name].range for name in self._interest.points}

    def moments(self, layer: Layer, quantization: Affine | None) -> Moments | None:
        """Return the moments of a layer's input; None if they were of no interest."""
        key = column_key(layer)
        if key in self._sums:
            errors = None
            if quantization is not None:
                errors = self.tensors[layer.input].rows.mean_error(quantization)
            self._moments[key] = self._sums.pop(key).moments(errors)
        # The moments of all layers together would take more memory than their sums.
        self._readers[key] -= 1
        if self._readers[key]:
            return self._moments.get(key)
        return self._moments.pop(key, None)


def observe(
    model: onnx.ModelProto,
    interest: Interest,
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> Observations:
    """Run the samples through a model once, and return what was observed.

    Args:
        model: float32, prepared.
        interest: what to observe.
        samples: the calibration samples.
        batch_size: most samples of one run; fewer if their tensors would not fit in memory.
        advance: receives the number of samples after each batch.

    Raises:
        ChainError: quantize-calibration-nonfinite, quantize-calibration-empty.
    """
    observations = Observations(interest)
    names = list(observations.tensors)
    elements = _count_elements(model, names, samples)
    size = _choose_batch(elements, batch_size)
    for name in names:
        elements[name] *= size
    # Tensors of even one sample may not fit in memory together; they take several runs.
    groups = stream.grouped(names, elements)
    runs = stream.tensors(model, groups, samples, size, advance, arena=True)
    with open_workers() as pool:
        for run, (number, samples_run, arrays) in enumerate(runs):
            futures = []
            for name, values in arrays.items():
                futures.append(
                    pool.submit(observations.tensors[name].add, values, samples_run, number)
                )
            for name, future in zip(arrays, futures, strict=True):
                if not future.result():
                    position = _locate(arrays[name], observations.count, samples_run)
                    raise _nonfinite(name, position, samples.origin)
            # The next run needs the memory of these tensors.
            arrays.clear()
            futures.clear()
            del values, future
            if (run + 1) % len(groups) == 0:
                observations.count += samples_run
    for name, tensor in observations.tensors.items():
        if tensor.range.low > tensor.range.high:
            raise no_samples(f"the tensor {name!r} is empty on all {observations.count} samples")
    return observations


def _count_elements(
    model: onnx.ModelProto, names: Sequence[str], samples: Samples
) -> dict[str, int]:
    """Return the size of each tensor for one sample, from a run of the first."""
    batch = next(iter(samples.batches(1)), None)
    if batch is None:
        raise no_samples(f"{samples.origin} is empty")
    measured = copied(model)
    del measured.graph.output[:]
    for position, name in enumerate(names):
        output = f"edgepack_size_{position}"
        measured.graph.node.append(helper.make_node("Size", [name], [output]))
        measured.graph.output.append(onnx.ValueInfoProto(name=output))
    sizes = stream.run_batch(stream.session(measured), batch)
    elements = {}
    for name, size in zip(names, sizes, strict=True):
        elements[name] = -(-int(size) // batch.count)
    return elements


def _choose_batch(elements: Mapping[str, int], most: int) -> int:
    """Return the number of samples whose tensors fit in memory together, at most `most`."""
    # The arena of the session takes as much again.
    needed = 2 * 4 * sum(elements.values())
    return int(np.clip(stream.HELD_BYTES // max(needed, 1), 1, most))


def no_samples(why: str) -> ChainError:
    """Return the error for samples without a value of some tensor."""
    return ChainError(
        "quantize-calibration-empty",
        "there are no calibration samples",
        why=why,
        hint="pass 100 or more samples like those on the device",
    )


def _locate(values: np.ndarray, first: int, count: int) -> str:
    """Name the sample of a batch in which a tensor has NaN or infinity, or all of its samples."""
    if values.ndim and len(values) % count == 0:
        finite = np.isfinite(values.reshape(count, -1)).all(axis=1)
        return f"sample {first + int(np.argmin(finite))}"
    return f"samples {first} to {first + count - 1}"


def _nonfinite(name: str, position: str, origin: str) -> ChainError:
    return ChainError(
        "quantize-calibration-nonfinite",
        "the model returned NaN or infinity during calibration",
        why=f"in the tensor {name!r} on {position} of {origin}",
        hint="check those samples and the preprocessing: the float model itself returns it",
    )
