"""What becomes fp16, and what stays float32 with the reason.

A tensor is stored as fp16 only where fp16 holds what was measured of it; a node that reads or
makes another stays float32 and so does one whose constants or partial sums fp16 does not hold.
What is left standing alone between float32 nodes joins them: its Casts would cost more than its
fp16 saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from edgepack.chain.half import operators
from edgepack.chain.half.graph import Graph, Kept, title
from edgepack.chain.half.measure import Measured, Seen, of_array
from edgepack.chain.half.options import HalfOptions
from edgepack.chain.half.sums import Sum

# A float32 rounded to fp16 keeps 73 dB of a signal; values that underflow keep less. Below this,
# a rounding error is no longer small beside the 60 dB or so of a whole fp16 network.
LEAST_SNR_DB = 50.0
# Relative rounding error of a normal fp16 number, at most.
UNIT = 2.0**-11

# A constant of so many values is worth its Casts in bytes.
LARGE = 4096

ALONE = "it stands between nodes that stay float32"


@dataclass(frozen=True)
class Placement:
    """What becomes fp16.

    Attributes:
        half: indices of the nodes that compute in fp16.
        kept: the nodes that could not, in the graph's order.
        integer: indices of nodes that a quantized engine runs in integers.
        limit: largest magnitude that a measured value may have.
    """

    half: frozenset[int]
    kept: tuple[Kept, ...]
    integer: frozenset[int]
    limit: float


def place(
    graph: Graph, sums: Mapping[int, Sum], measured: Measured, options: HalfOptions
) -> Placement:
    """Decide what becomes fp16."""
    return _Placer(graph, sums, measured, operators.LARGEST / options.margin).placement()


class _Placer:
    def __init__(
        self, graph: Graph, sums: Mapping[int, Sum], measured: Measured, limit: float
    ) -> None:
        self.graph, self.sums, self.measured, self.limit = graph, sums, measured, limit
        self.constants: dict[str, tuple[str, float] | None] = {}
        self.tensors: dict[str, tuple[str, float] | None] = {
            name: self._of_values(seen) for name, seen in measured.tensors.items()
        }
        # A tensor that one reader needs in float32 is not stored as fp16 before it.
        for index in graph.candidates:
            for name, fault in self._demands(index):
                if name in self.tensors and self.tensors[name] is None:
                    self.tensors[name] = fault

    def placement(self) -> Placement:
        kept = dict(self.graph.rest)
        for index in self.graph.candidates:
            found = self._against(index)
            if found is not None:
                kept[index] = self._kept(index, *found)
        self._keep_patterns_whole(kept)
        half = {index for index in self.graph.candidates if index not in kept}
        for part in self._parts(half):
            if not any(self._worth_casts(index) for index in part):
                half -= part
                kept.update((index, self._kept(index, ALONE)) for index in part)
        return Placement(
            half=frozenset(half),
            kept=tuple(kept[index] for index in sorted(kept)),
            integer=self.graph.integer,
            limit=self.limit,
        )

    def _kept(self, index: int, reason: str, value: float | None = None) -> Kept:
        node = self.graph.view.nodes[index]
        return Kept(title(node, index), node.op_type, reason, value)

    def _worth_casts(self, index: int) -> bool:
        """Whether a node's arithmetic or its bytes are worth Casts around it."""
        if self.graph.view.nodes[index].op_type in operators.LAYERS or index in self.graph.integer:
            return True
        constants = (self.graph.view.constant(n) for n in self.graph.inputs(index))
        return any(values is not None and values.size >= LARGE for values in constants)

    def _neighbours(self, index: int) -> set[int]:
        """The nodes that a node shares a float32 tensor with, as its maker or its reader."""
        view, node = self.graph.view, self.graph.view.nodes[index]
        makers = {view.producer[n] for n in self.graph.inputs(index) if n in view.producer}
        return makers.union(*(view.readers.get(name, ()) for name in node.output))

    def _parts(self, half: set[int]) -> Iterator[set[int]]:
        """The nodes in parts that hang together."""
        left = set(half)
        while left:
            part, edge = set(), {left.pop()}
            while edge:
                part |= edge
                edge = {n for index in edge for n in self._neighbours(index)} & left
                left -= edge
            yield part

    def _keep_patterns_whole(self, kept: dict[int, Kept]) -> None:
        """A Cast between Q, DQ and their node would hide the pattern from integer kernels."""
        integer = self.graph.integer.intersection(self.graph.candidates)
        edge: set[int] = set(integer.intersection(kept))
        while edge:
            around = {n for index in edge for n in self._neighbours(index)}
            edge = (around & integer).difference(kept)
            for index in edge:
                kept[index] = self._kept(index, "a part of its quantized node stays float32")

    def _of_values(self, seen: Seen) -> tuple[str, float] | None:
        """What speaks against storing a measured tensor as fp16, after its name."""
        if not seen.elements:
            return "was empty on every sample", float("nan")
        if seen.nan:
            return "holds NaN", float("nan")
        if seen.peak > self.limit:
            return f"reaches {seen.peak:.3g}", seen.peak
        if seen.snr_db < LEAST_SNR_DB:
            return (
                f"underflows: fp16 keeps {max(seen.snr_db, 0.0):.0f} dB of values up to "
                f"{seen.peak:.2g}",
                seen.peak,
            )
        return None

    def _demands(self, index: int) -> Iterator[tuple[str, tuple[str, float]]]:
        """What a node needs of single tensors beyond their range."""
        divisor = self.graph.divisor(index)
        seen = self._seen(divisor)
        if seen is not None and seen.smallest < operators.SMALLEST_NORMAL:
            yield divisor, (f"is divided by and falls to {seen.smallest:.2g}", seen.smallest)
        angle = self.graph.angle(index)
        seen = self._seen(angle)
        if seen is not None and seen.peak > operators.LARGEST_ANGLE:
            off = seen.peak * UNIT
            yield angle, (f"is an angle up to {seen.peak:.3g}: fp16 is off by {off:.1g}", seen.peak)
        node = self.graph.view.nodes[index]
        made = node.output[0]
        for name in self.graph.constants(index) if node.op_type in operators.FLOORS else ():
            fault = self._constant(name)
            if fault is not None and fault[1] < operators.SMALLEST_NORMAL:
                yield made, (f"is kept from 0 by {name}, which {fault[0]}", fault[1])
        if node.op_type == "Cast" and node.input[0] not in self.graph.floats:
            seen = self._seen(made)
            if seen is not None and seen.peak > operators.LARGEST_WHOLE:
                yield made, (f"counts to {seen.peak:.6g}, and fp16 not beyond 2048", seen.peak)

    def _seen(self, name: str) -> Seen | None:
        if not name:
            return None
        values = self.graph.view.constant(name)
        if values is not None and values.dtype == np.float32:
            return of_array(values)
        return self.measured.tensors.get(name)

    def _against(self, index: int) -> tuple[str, float] | None:
        """Why a candidate stays float32: its constants, its tensors, its sums."""
        node = self.graph.view.nodes[index]
        for name in self.graph.constants(index):
            fault = self._constant(name, scale=node.op_type in operators.QUANTIZERS)
            if fault is not None:
                return f"its constant {name} {fault[0]}", fault[1]
        for name, fault in self._demands(index):
            if name not in self.tensors:
                return f"its constant {name} {fault[0]}", fault[1]
        for name in self.graph.touched(index):
            fault = self.tensors[name]
            if fault is not None:
                what = "its output" if name in node.output else "its input"
                return f"{what} {name} {fault[0]}", fault[1]
        bound, reached = self.sums.get(index), self.measured.sums.get(index, 0.0)
        if bound is not None and reached > self.limit:
            return f"{bound.what} may reach {reached:.3g}", reached
        return None

    def _constant(self, name: str, scale: bool = False) -> tuple[str, float] | None:
        if name not in self.constants:
            values = numpy_helper.to_array(self.graph.view.initializers[name])
            self.constants[name] = _of_scale(values) if scale else _of_constant(values)
        return self.constants[name]


def _of_constant(values: np.ndarray) -> tuple[str, float] | None:
    """What speaks against storing a constant as fp16. It is what it is: no margin is needed."""
    seen = of_array(values)
    if seen.nan:
        return "holds NaN", float("nan")
    if seen.peak > operators.LARGEST:
        return f"reaches {seen.peak:.3g}", seen.peak
    if seen.snr_db < LEAST_SNR_DB:
        if values.size == 1:
            return f"is {seen.peak:.2g}, which fp16 holds as {np.float16(seen.peak):.2g}", seen.peak
        kept = max(seen.snr_db, 0.0)
        return f"underflows: fp16 keeps {kept:.0f} dB of values up to {seen.peak:.2g}", seen.peak
    return None


def _of_scale(values: np.ndarray) -> tuple[str, float] | None:
    """A scale counts for each channel by itself."""
    stored = values.astype(np.float16).astype(np.float32)
    off = np.abs(stored / np.where(values == 0, 1, values) - 1)
    if not np.isfinite(stored).all() or np.any(off > 2 * UNIT):
        worst = float(values.ravel()[int(np.argmax(off))])
        return f"is a scale of {worst:.2g}, which fp16 does not hold", worst
    return None
