"""Observe activations: exact ranges first, then histograms over those ranges.

Both are streamed. Ranges are reduced by nodes appended to the graph, so that a run returns only a
few values per tensor; histograms process a tensor at a time and store counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.stream import grouped, session, tensors

BINS = 2048
# Values that one batch adds to the histogram of a tensor; larger tensors are subsampled evenly.
COUNTED = 2**17


@dataclass
class Range:
    """Exact range of a tensor over all samples.

    Attributes:
        low, high: smallest and largest value.
        elements: size of the largest batch.
    """

    low: float
    high: float
    elements: int


@dataclass
class Histogram:
    """Counts in bins of equal width over a fixed range; exact zeros are counted separately.

    Attributes:
        low, high: the range; values outside are counted in the first and last bin.
        counts: (bins,) int64.
        zeros: number of values that are exactly 0 (0 is represented without error).
    """

    low: float
    high: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    zeros: int = 0

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, (bins + 1,)."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    def add(self, values: np.ndarray) -> None:
        """Count the values of one batch."""
        flat = np.asarray(values, dtype=np.float32).ravel()
        if self.high <= self.low:
            self.zeros += flat.size
            return
        # A range of [-1, 3] in 4 bins: -1 falls in bin 0, 0 in bin 1, and 3, the end, in bin 3.
        bins = len(self.counts)
        bin_indices = (flat - np.float32(self.low)) * np.float32(bins / (self.high - self.low))
        bin_indices = np.clip(bin_indices, 0, bins - 1).astype(np.int32)
        zero = int(flat.size - np.count_nonzero(flat))
        self.counts += np.bincount(bin_indices, minlength=bins)
        if zero:
            # The zeros were counted with their bin; move them to their own count.
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
    """Return the exact range of each tensor, and the number of samples.

    Raises:
        ChainError: quantize-calibration-nonfinite, quantize-calibration-empty.
    """
    runner = session(_append_reductions(model, names))
    ranges: dict[str, Range] = {}
    count = 0
    for batch in samples.batches(batch_size):
        feed = {value.name: batch.inputs[value.name] for value in runner.get_inputs()}
        # Four results a tensor, in the order of `_append_reductions`.
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
    if not count:
        raise _no_samples(f"{samples.origin} is empty")
    if unobserved:
        raise _no_samples(f"the tensor {unobserved[0]!r} is empty on all {count} samples")
    return ranges, count


def _no_samples(why: str) -> ChainError:
    return ChainError(
        "quantize-calibration-empty",
        "there are no calibration samples",
        why=why,
        hint="pass 100 or more samples like those on the device",
    )


def observe_histograms(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Histogram]:
    """Return a histogram of each tensor over its exact range."""
    # The largest batch decides how many tensors fit in memory at a time.
    histograms = {name: Histogram(observed.low, observed.high) for name, observed in ranges.items()}
    groups = grouped(list(ranges), {name: observed.elements for name, observed in ranges.items()})
    runs = tensors(model, groups, samples, batch_size, advance)
    for number, arrays in runs:
        for name, values in arrays.items():
            histograms[name].add(spread(values.ravel(), COUNTED, number))
    return histograms


def spread(items: np.ndarray, most: int, offset: int) -> np.ndarray:
    """Return about `most` entries along axis 0 at most, evenly spread from `offset` on.

    Example: 10 items with `most` = 4 and `offset` = 1 give items 1, 4 and 7.
    """
    if len(items) <= most:
        return items
    # Rows of a feature map often have an even length; an odd step does not repeat their columns.
    step = -(-len(items) // most) | 1
    return items[offset % step :: step]


def _append_reductions(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that outputs minimum, maximum, mean and size of each tensor."""
    result = copied(model)
    graph = result.graph
    del graph.output[:]
    for position, name in enumerate(names):
        for kind in ("ReduceMin", "ReduceMax", "ReduceMean", "Size"):
            output = f"edgepack_{kind}_{position}"
            # Size takes no attributes; the others reduce over all axes.
            settings = {"keepdims": 0} if kind != "Size" else {}
            graph.node.append(helper.make_node(kind, [name], [output], **settings))
            graph.output.append(onnx.ValueInfoProto(name=output))
    return result


def _nonfinite(name: str, first: int, count: int, origin: str) -> ChainError:
    position = f"sample {first}"
    if count > 1:
        position = f"samples {first} to {first + count - 1}"
    return ChainError(
        "quantize-calibration-nonfinite",
        "the model returned NaN or infinity during calibration",
        why=f"in the tensor {name!r} on {position} of {origin}",
        hint="check those samples and the preprocessing: the float model itself returns it",
    )
