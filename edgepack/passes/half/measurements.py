"""Measure ranges, fp16 rounding losses and partial sums of every tensor, streamed.

Reductions are appended to the float32 graph, so that a run returns only a few numbers per tensor
and memory does not grow with the samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.stream import grouped, run_batch, session, tensors
from edgepack.passes.half.operators import LARGEST
from edgepack.passes.half.sums import Sum

# Values of a constant that are processed at a time.
PART = 2**20


@dataclass
class TensorStatistics:
    """Statistics of one tensor over all samples.

    Attributes:
        peak: largest finite absolute value.
        smallest: smallest nonzero absolute value; infinity if it was not measured.
        power: sum of squares of the values that fp16 can represent.
        noise: sum of squares of their errors when rounded to fp16.
        infinite: True if it held an infinity.
        nan: True if it held a NaN.
        elements: size of the largest batch; 0 if it was always empty.
    """

    peak: float = 0.0
    smallest: float = math.inf
    power: float = 0.0
    noise: float = 0.0
    infinite: bool = False
    nan: bool = False
    elements: int = 0

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the tensor in fp16; about 73 dB if nothing underflows."""
        if self.noise == 0:
            return math.inf
        ratio = self.power / self.noise
        if ratio == 0:
            return -math.inf
        return 10 * math.log10(ratio)

    def add(self, values: np.ndarray) -> None:
        """Update the statistics with one batch, except `elements`."""
        self.nan |= bool(np.isnan(values).any())
        self.infinite |= bool(np.isinf(values).any())
        finite = np.abs(values[np.isfinite(values)]).astype(np.float64)
        if finite.size:
            self.peak = max(self.peak, float(finite.max()))
        if finite.any():
            self.smallest = min(self.smallest, float(finite[finite > 0].min()))
        representable = finite[finite <= LARGEST]
        self.power += float(np.sum(representable**2))
        self.noise += float(np.sum((representable - representable.astype(np.float16)) ** 2))


def measure_array(values: np.ndarray) -> TensorStatistics:
    """Return the statistics of a constant."""
    statistics, flat = TensorStatistics(elements=values.size), values.ravel()
    for start in range(0, flat.size, PART):
        statistics.add(flat[start : start + PART])
    return statistics


@dataclass(frozen=True)
class Measurements:
    """Measurements over all samples.

    Attributes:
        tensors: by name.
        sums: largest partial sum of a node, by its index.
        samples: their number.
    """

    tensors: Mapping[str, TensorStatistics]
    sums: Mapping[int, float]
    samples: int


def measure(
    model: onnx.ModelProto,
    names: Sequence[str],
    divisors: Collection[str],
    sums: Mapping[int, Sum],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
    expect: Callable[[int], None],
) -> Measurements:
    """Run the samples once, and a second time for tensors that hold infinities or NaN.

    Args:
        model: float32 or quantized.
        names: float32 tensors, at least one; inputs and node outputs.
        divisors: those of them whose smallest value is needed.
        sums: bounds of nodes, by index.
        samples: the calibration samples.
        batch_size: samples per run.
        advance: receives the number of samples after each batch.
        expect: receives the total number of samples if there is a second pass.

    Raises:
        ChainError: half-calibration-empty, half-calibration-nonfinite.
    """
    runner = session(_append_reductions(model, names, divisors, sums))
    statistics = {name: TensorStatistics() for name in names}
    largest = dict.fromkeys(sums, 0.0)
    nonfinite: set[str] = set()
    count = 0
    for batch in samples.batches(batch_size):
        results = map(_first_value, run_batch(runner, batch))
        # The results have the order of `_append_reductions`: four or five a tensor, then one a
        # bound.
        for name in names:
            entry = statistics[name]
            size, peak, power, noise = itertools.islice(results, 4)
            smallest = next(results) if name in divisors else math.inf
            entry.elements = max(entry.elements, int(size))
            if size and not math.isfinite(peak + power):
                nonfinite.add(name)
            elif size:
                entry.peak, entry.smallest = max(entry.peak, peak), min(entry.smallest, smallest)
                entry.power, entry.noise = entry.power + power, entry.noise + noise
        for index, bound in sums.items():
            reached = next(results) * bound.factor
            # Infinities cancel to NaN, which has to count as larger than any bound.
            if math.isnan(reached):
                reached = math.inf
            largest[index] = max(largest[index], reached)
        count += batch.count
        advance(batch.count)
    if not count:
        raise ChainError(
            "half-calibration-empty",
            "there are no calibration samples",
            why=f"{samples.origin} is empty",
            hint="pass 100 or more samples like those on the device",
        )
    if nonfinite:
        expect(2 * count)
        sizes = {name: statistics[name].elements for name in names if name in nonfinite}
        statistics.update(_measure_finite(model, sizes, samples, batch_size, advance))
    return Measurements(statistics, largest, count)


def _first_value(array: np.ndarray) -> float:
    return float(array.flat[0])


def _measure_finite(
    model: onnx.ModelProto,
    sizes: dict[str, int],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, TensorStatistics]:
    """Measure tensors again, keeping finite values apart from infinities and NaN."""
    statistics = {name: TensorStatistics(elements=size) for name, size in sizes.items()}
    for _, _, arrays in tensors(model, grouped(list(sizes), sizes), samples, batch_size, advance):
        for name, values in arrays.items():
            statistics[name].add(values)
    broken: list[str] = []
    for value in model.graph.output:
        entry = statistics.get(value.name)
        if entry is not None and (entry.nan or entry.infinite):
            broken.append(value.name)
    if broken:
        raise ChainError(
            "half-calibration-nonfinite",
            "the model returned NaN or infinity during calibration",
            why=f"in the output {broken[0]!r} on {samples.origin}",
            hint="check those samples and the preprocessing: the float model itself returns it",
        )
    return statistics


def _append_reductions(
    model: onnx.ModelProto,
    names: Sequence[str],
    divisors: Collection[str],
    sums: Mapping[int, Sum],
) -> onnx.ModelProto:
    """Return a copy of the model that outputs the measurements instead of its outputs.

    Outputs, in order: for each tensor its size, largest absolute value, sum of squares, sum of
    squares of its rounding error and, for a divisor, its smallest nonzero magnitude; then the
    largest value of each bound.
    """
    result = copied(model)
    graph = result.graph
    del graph.output[:]
    del graph.value_info[:]

    def op(kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def out(name: str) -> None:
        graph.output.append(onnx.ValueInfoProto(name=name))

    huge, zero = "edgepack_huge", "edgepack_zero"
    for name, value in ((huge, math.inf), (zero, 0.0)):
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name)
        )
    for position, name in enumerate(names):
        prefix = f"edgepack_{position}"
        out(op("Size", [name], f"{prefix}_size"))
        # The rounding error of x is x - float32(fp16(x)).
        size = op("Abs", [name], f"{prefix}_absolute")
        out(op("ReduceMax", [size], f"{prefix}_peak", keepdims=0))
        out(op("ReduceSumSquare", [name], f"{prefix}_power", keepdims=0))
        stored = op("Cast", [name], f"{prefix}_stored", to=onnx.TensorProto.FLOAT16)
        restored = op("Cast", [stored], f"{prefix}_back", to=onnx.TensorProto.FLOAT)
        error = op("Sub", [name, restored], f"{prefix}_lost")
        out(op("ReduceSumSquare", [error], f"{prefix}_noise", keepdims=0))
        if name in divisors:
            # Infinity in place of zeros keeps them out of the minimum.
            is_zero = op("Equal", [size, zero], f"{prefix}_null")
            nonzero = op("Where", [is_zero, huge, size], f"{prefix}_rest")
            out(op("ReduceMin", [nonzero], f"{prefix}_smallest", keepdims=0))
    for index, bound in sums.items():
        graph.node.extend(bound.nodes)
        out(op("ReduceMax", [bound.output], f"edgepack_largest_{index}", keepdims=0))
    return result
