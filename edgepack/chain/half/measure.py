"""What fp16 would make of every tensor: ranges, rounding losses and partial sums, streamed.

All is reduced inside the network's own run in float32, so that only a few numbers of each tensor
come out, and memory does not grow with the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from edgepack.chain.graphs.stream import grouped, session, tensors
from edgepack.chain.half.operators import LARGEST
from edgepack.chain.half.sums import Sum
from edgepack.data.samples import Samples
from edgepack.errors import ChainError

# Values of a constant that are looked at together.
PART = 2**20


@dataclass
class Seen:
    """A tensor over all samples.

    Attributes:
        peak: largest finite absolute value.
        smallest: smallest absolute value but 0; infinity where it was not asked for.
        power: sum of squares of what fp16 can hold.
        noise: sum of squares of what rounding to fp16 changes in those.
        infinite: whether it held an infinity.
        nan: whether it held a NaN.
        elements: size of the largest batch; 0 where it was always empty.
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
        """Of the tensor in fp16; about 73 dB where nothing underflows."""
        if self.noise == 0:
            return math.inf
        ratio = self.power / self.noise
        return 10 * math.log10(ratio) if ratio > 0 else -math.inf

    def add(self, values: np.ndarray) -> None:
        """Count a batch as an array; `elements` is left."""
        self.nan |= bool(np.isnan(values).any())
        self.infinite |= bool(np.isinf(values).any())
        finite = np.abs(values[np.isfinite(values)]).astype(np.float64)
        if finite.size:
            self.peak = max(self.peak, float(finite.max()))
        if finite.any():
            self.smallest = min(self.smallest, float(finite[finite > 0].min()))
        held = finite[finite <= LARGEST]
        self.power += float(np.sum(held**2))
        self.noise += float(np.sum((held - held.astype(np.float16)) ** 2))


def of_array(values: np.ndarray) -> Seen:
    """The same of a constant."""
    seen, flat = Seen(elements=values.size), values.ravel()
    for start in range(0, flat.size, PART):
        seen.add(flat[start : start + PART])
    return seen


@dataclass(frozen=True)
class Measured:
    """What the samples showed.

    Attributes:
        tensors: by name.
        sums: the largest partial sum of a node, by its index.
        samples: their number.
    """

    tensors: Mapping[str, Seen]
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
) -> Measured:
    """Run the samples, once; tensors that hold infinities or NaN are looked at a second time.

    Args:
        model: float32 or quantized.
        names: float32 tensors, at least one; inputs and what nodes make.
        divisors: those of them whose smallest value counts.
        sums: bounds of nodes, by index.
        samples: the calibration samples.
        batch_size: samples at once.
        advance: told the number of samples when a batch is done.
        expect: told the number of samples in all where there is a second pass.

    Raises:
        ChainError: half-calibration-empty, half-calibration-nonfinite.
    """
    runner = session(_reducing(model, names, divisors, sums))
    found = {name: Seen() for name in names}
    largest = dict.fromkeys(sums, 0.0)
    odd: set[str] = set()
    count = 0
    for batch in samples.batches(batch_size):
        fed = {value.name: batch.inputs[value.name] for value in runner.get_inputs()}
        results: Iterator[float] = (float(np.ravel(array)[0]) for array in runner.run(None, fed))
        for name in names:
            seen = found[name]
            size, peak, power, noise = (next(results) for _ in range(4))
            smallest = next(results) if name in divisors else math.inf
            seen.elements = max(seen.elements, int(size))
            if size and not math.isfinite(peak + power):
                odd.add(name)
            elif size:
                seen.peak, seen.smallest = max(seen.peak, peak), min(seen.smallest, smallest)
                seen.power, seen.noise = seen.power + power, seen.noise + noise
        for index, bound in sums.items():
            reached = next(results) * bound.factor
            # NaN where infinities cancel: larger than any bound.
            largest[index] = max(largest[index], math.inf if math.isnan(reached) else reached)
        count += batch.count
        advance(batch.count)
    if not count:
        raise ChainError(
            "half-calibration-empty",
            "there are no calibration samples",
            why=f"{samples.origin} held none",
            hint="give samples that are like what the device will see; 100 or more",
        )
    if odd:
        expect(2 * count)
        sizes = {name: found[name].elements for name in names if name in odd}
        found.update(_look_again(model, sizes, samples, batch_size, advance))
    return Measured(found, largest, count)


def _look_again(
    model: onnx.ModelProto,
    sizes: dict[str, int],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Seen]:
    """Tensors of those sizes anew, finite values told apart from infinities and NaN."""
    found = {name: Seen(elements=size) for name, size in sizes.items()}
    for _, arrays in tensors(model, grouped(list(sizes), sizes), samples, batch_size, advance):
        for name, values in arrays.items():
            found[name].add(values)
    outputs = [value.name for value in model.graph.output if value.name in found]
    broken = [name for name in outputs if found[name].nan or found[name].infinite]
    if broken:
        raise ChainError(
            "half-calibration-nonfinite",
            "the model gave NaN or infinity while its ranges were measured",
            why=f"in the output {broken[0]!r} on {samples.origin}",
            hint="check those samples and the preprocessing; the model itself is at fault there",
        )
    return found


def _reducing(
    model: onnx.ModelProto,
    names: Sequence[str],
    divisors: Collection[str],
    sums: Mapping[int, Sum],
) -> onnx.ModelProto:
    """A copy whose outputs are, in order: of each tensor its size, its largest absolute value,
    its sum of squares, that of its rounding error, of a divisor the smallest value but 0; then
    the largest of each bound."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
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
    for place, name in enumerate(names):
        prefix = f"edgepack_{place}"
        out(op("Size", [name], f"{prefix}_size"))
        size = op("Abs", [name], f"{prefix}_absolute")
        out(op("ReduceMax", [size], f"{prefix}_peak", keepdims=0))
        out(op("ReduceSumSquare", [name], f"{prefix}_power", keepdims=0))
        stored = op("Cast", [name], f"{prefix}_stored", to=onnx.TensorProto.FLOAT16)
        back = op("Cast", [stored], f"{prefix}_back", to=onnx.TensorProto.FLOAT)
        lost = op("Sub", [name, back], f"{prefix}_lost")
        out(op("ReduceSumSquare", [lost], f"{prefix}_noise", keepdims=0))
        if name in divisors:
            null = op("Equal", [size, zero], f"{prefix}_null")
            rest = op("Where", [null, huge, size], f"{prefix}_rest")
            out(op("ReduceMin", [rest], f"{prefix}_smallest", keepdims=0))
    for index, bound in sums.items():
        graph.node.extend(bound.nodes)
        out(op("ReduceMax", [bound.output], f"edgepack_largest_{index}", keepdims=0))
    return opened
