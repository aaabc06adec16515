"""What the activations look like: exact ranges first, histograms of fixed range second.

Both are streamed. The ranges are reduced inside the network's own run, so that only a few values
of each tensor come out; the histograms take a tensor at a time and keep counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from edgepack.chain.graphs.stream import grouped, session, tensors
from edgepack.data.samples import Samples
from edgepack.errors import ChainError

BINS = 2048
# Values of one tensor that one batch adds to its histogram; of a larger one, evenly spread ones.
COUNTED = 2**17


@dataclass
class Range:
    """The exact range of a tensor over all samples.

    Attributes:
        low, high: over everything.
        elements: size of the largest batch.
    """

    low: float
    high: float
    elements: int


@dataclass
class Histogram:
    """Counts in bins of equal width over a fixed range; exact zeros are counted apart.

    Attributes:
        low, high: the range; values outside are counted in the first and last bin.
        counts: (bins,) int64.
        zeros: how many values were exactly 0 (they cost no error: 0 is always represented).
    """

    low: float
    high: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    zeros: int = 0

    @property
    def edges(self) -> np.ndarray:
        """(bins + 1,) the bins' borders."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    def add(self, values: np.ndarray) -> None:
        """Count the values of one batch."""
        flat = np.asarray(values, dtype=np.float32).ravel()
        if self.high <= self.low:
            self.zeros += flat.size
            return
        bins = len(self.counts)
        bin_indices = (flat - np.float32(self.low)) * np.float32(bins / (self.high - self.low))
        bin_indices = np.clip(bin_indices, 0, bins - 1).astype(np.int32)
        zero = int(flat.size - np.count_nonzero(flat))
        self.counts += np.bincount(bin_indices, minlength=bins)
        if zero:
            home = (np.float32(0) - np.float32(self.low)) * np.float32(
                bins / (self.high - self.low)
            )
            self.counts[int(np.clip(home, 0, bins - 1))] -= zero
            self.zeros += zero


def observe_ranges(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple[dict[str, Range], int]:
    """The exact range of each tensor, and the number of samples.

    Raises:
        ChainError: quantize-calibration-nonfinite, quantize-calibration-empty.
    """
    runner = session(_reducing(model, names))
    ranges: dict[str, Range] = {}
    count = 0
    for batch in samples.batches(batch_size):
        feed = {value.name: batch.inputs[value.name] for value in runner.get_inputs()}
        results = iter(runner.run(None, feed))
        for name in names:
            low, high, mean, size = (next(results).item() for _ in range(4))
            if size == 0:
                continue
            if not np.isfinite([low, high, mean]).all():
                raise _nonfinite(name, count, batch.count, samples.origin)
            observed = ranges.setdefault(name, Range(low, high, 0))
            observed.low, observed.high = min(observed.low, low), max(observed.high, high)
            observed.elements = max(observed.elements, size)
        count += batch.count
        advance(batch.count)
    unobserved = [name for name in names if name not in ranges]
    if not count or unobserved:
        raise ChainError(
            "quantize-calibration-empty",
            "there are no calibration samples",
            why=f"{samples.origin} held {count} samples"
            + (f", and {unobserved[0]!r} was empty on all of them" if count else ""),
            hint="give samples that are like what the device will see; 100 or more",
        )
    return ranges, count


def observe_histograms(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Histogram]:
    """A histogram of each tensor over its exact range."""
    histograms = {name: Histogram(observed.low, observed.high) for name, observed in ranges.items()}
    groups = grouped(list(ranges), {name: observed.elements for name, observed in ranges.items()})
    runs = tensors(model, groups, samples, batch_size, advance)
    for number, arrays in runs:
        for name, values in arrays.items():
            histograms[name].add(spread(values.ravel(), COUNTED, number))
    return histograms


def spread(items: np.ndarray, most: int, offset: int) -> np.ndarray:
    """At most about `most` entries along axis 0, evenly spread; `offset` moves their start."""
    if len(items) <= most:
        return items
    # An odd step does not fall into the period of a feature map's rows.
    step = -(-len(items) // most) | 1
    return items[offset % step :: step]


def _reducing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives minimum, maximum, mean and size of each tensor, in that order."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.output[:]
    for position, name in enumerate(names):
        for kind in ("ReduceMin", "ReduceMax", "ReduceMean", "Size"):
            output = f"edgepack_{kind}_{position}"
            settings = {} if kind == "Size" else {"keepdims": 0}
            graph.node.append(helper.make_node(kind, [name], [output], **settings))
            graph.output.append(onnx.ValueInfoProto(name=output))
    return result


def _nonfinite(name: str, first: int, count: int, origin: str) -> ChainError:
    position = f"sample {first}" if count == 1 else f"samples {first} to {first + count - 1}"
    return ChainError(
        "quantize-calibration-nonfinite",
        "the model gave NaN or infinity while it was calibrated",
        why=f"in the tensor {name!r} on {position} of {origin}",
        hint="check those samples and the preprocessing; the float model itself is at fault there",
    )
