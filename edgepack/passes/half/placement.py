"""Choose the nodes that become fp16, and give the reason for every node that stays float32.

A tensor is stored as fp16 only if its measured values fit. A node stays float32 if one of its
tensors, constants or partial sums does not fit. Groups of fp16 nodes that are too small to pay for
the Casts around them stay float32 as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from edgepack.onnx_tools.operators import Trait, having, operator
from edgepack.passes.half import operators
from edgepack.passes.half.candidates import FloatNode, Graph, title
from edgepack.passes.half.measurements import Measurements, TensorStatistics, measure_array
from edgepack.passes.half.options import HalfOptions
from edgepack.passes.half.sums import Sum

# A float32 signal rounded to fp16 has an SNR of 73 dB, and less if values underflow. Below this
# limit the rounding error is no longer small beside the 60 dB or so of a complete fp16 network.
LEAST_SNR_DB = 50.0
# Largest relative rounding error of a normal fp16 number.
UNIT = 2.0**-11

# Number of values from which halving a constant saves more bytes than its Casts cost.
LARGE = 4096

ISOLATED = "Casts around it would cost more than fp16 saves"


@dataclass(frozen=True)
class Placement:
    """Nodes that become fp16.

    Attributes:
        half: indices of the nodes that compute in fp16.
        float_nodes: nodes that stay float32, in the graph's order.
        integer: indices of nodes that a quantized engine runs in integers.
        limit: largest magnitude allowed for a measured value.
    """

    half: frozenset[int]
    float_nodes: tuple[FloatNode, ...]
    integer: frozenset[int]
    limit: float


def place(
    graph: Graph, sums: Mapping[int, Sum], measured: Measurements, options: HalfOptions
) -> Placement:
    """Choose the nodes that become fp16."""
    return _Placer(graph, sums, measured, operators.LARGEST / options.margin).placement()


class _Placer:
    def __init__(
        self, graph: Graph, sums: Mapping[int, Sum], measured: Measurements, limit: float
    ) -> None:
        self.graph, self.sums, self.measured, self.limit = graph, sums, measured, limit
        self.constants: dict[str, tuple[str, float] | None] = {}
        self.tensors: dict[str, tuple[str, float] | None] = {}
        for name, statistics in measured.tensors.items():
            self.tensors[name] = self._check_tensor(statistics)
        # If one reader needs a tensor in float32, the tensor is not stored as fp16 at all.
        for index in graph.candidates:
            for name, fault in self._check_inputs(index):
                if name in self.tensors and self.tensors[name] is None:
                    self.tensors[name] = fault

    def placement(self) -> Placement:
        float_nodes = dict(self.graph.excluded)
        for index in self.graph.candidates:
            fault = self._check_node(index)
            if fault is not None:
                float_nodes[index] = self._float_node(index, *fault)
        self._exclude_broken_patterns(float_nodes)
        # The remaining candidates become fp16, unless Casts around them would cost too much.
        half = set(self.graph.candidates).difference(float_nodes)
        # A Relu between two float32 layers would need two Casts and save nothing.
        for part in self._connected_parts(half):
            if any(map(self._justifies_casts, part)):
                continue
            half -= part
            for index in part:
                float_nodes[index] = self._float_node(index, ISOLATED)
        return Placement(
            half=frozenset(half),
            float_nodes=tuple(float_nodes[index] for index in sorted(float_nodes)),
            integer=self.graph.integer,
            limit=self.limit,
        )

    def _float_node(self, index: int, reason: str, value: float | None = None) -> FloatNode:
        node = self.graph.view.nodes[index]
        return FloatNode(title(node, index), node.op_type, reason, value)

    def _justifies_casts(self, index: int) -> bool:
        """Return True if fp16 saves a node enough time or bytes to pay for Casts around it."""
        if operator(self.graph.view.nodes[index].op_type).weights or index in self.graph.integer:
            return True
        for name in self.graph.inputs(index):
            values = self.graph.view.constant(name)
            if values is not None and values.size >= LARGE:
                return True
        return False

    def _neighbours(self, index: int) -> set[int]:
        """Return the nodes that produce a float32 input of a node or read one of its outputs."""
        view, node = self.graph.view, self.graph.view.nodes[index]
        # Of the Relu in Conv -> Relu -> (Add, Mul) these are the Conv, the Add and the Mul.
        neighbours: set[int] = set()
        for name in self.graph.inputs(index):
            if name in view.producer:
                neighbours.add(view.producer[name])
        for name in node.output:
            neighbours.update(view.readers.get(name, ()))
        return neighbours

    def _around(self, indices: set[int]) -> set[int]:
        """Return the neighbours of several nodes."""
        return set().union(*map(self._neighbours, indices))

    def _connected_parts(self, half: set[int]) -> Iterator[set[int]]:
        """Yield the connected groups of the nodes."""
        remaining = set(half)
        while remaining:
            part, edge = set(), {remaining.pop()}
            # Grow the group from one node, a ring of neighbours at a time.
            while edge:
                part |= edge
                edge = self._around(edge) & remaining
                remaining -= edge
            yield part

    def _exclude_broken_patterns(self, float_nodes: dict[int, FloatNode]) -> None:
        """Return quantized nodes to float32 if a neighbour of theirs stays float32.

        A Cast between Q, DQ and their node would hide the pattern from integer kernels.
        """
        integer = self.graph.integer.intersection(self.graph.candidates)
        edge: set[int] = set(integer.intersection(float_nodes))
        while edge:
            edge = (self._around(edge) & integer).difference(float_nodes)
            for index in edge:
                float_nodes[index] = self._float_node(
                    index, "another node of its Q/DQ pattern stays float32"
                )

    def _check_tensor(self, statistics: TensorStatistics) -> tuple[str, float] | None:
        """Return why a measured tensor cannot be fp16, to be read after its name."""
        if not statistics.elements:
            return "is empty on every sample", float("nan")
        if statistics.nan:
            return "holds NaN", float("nan")
        if statistics.peak > self.limit:
            return f"reaches {statistics.peak:.3g}", statistics.peak
        if statistics.snr_db < LEAST_SNR_DB:
            return (
                f"underflows: fp16 keeps {max(statistics.snr_db, 0.0):.0f} dB of values up to "
                f"{statistics.peak:.2g}",
                statistics.peak,
            )
        return None

    # The range alone does not settle whether fp16 is accurate enough: 1 / 1e-7 overflows, sin(900)
    # is off by up to 0.4, and 2049 becomes 2048 when an index is cast to fp16.
    def _check_inputs(self, index: int) -> Iterator[tuple[str, tuple[str, float]]]:
        """Yield tensors whose values are too small or too large for this node, with the reason."""
        divisor = self.graph.divisor(index)
        statistics = self._statistics(divisor)
        if statistics is not None and statistics.smallest < operators.SMALLEST_NORMAL:
            yield (
                divisor,
                (f"is a divisor as small as {statistics.smallest:.2g}", statistics.smallest),
            )
        angle = self.graph.angle(index)
        statistics = self._statistics(angle)
        if statistics is not None and statistics.peak > operators.LARGEST_ANGLE:
            error = statistics.peak * UNIT
            yield (
                angle,
                (
                    f"is an angle of up to {statistics.peak:.3g}, rounded by up to {error:.1g}",
                    statistics.peak,
                ),
            )
        node = self.graph.view.nodes[index]
        output = node.output[0]
        # In x / (std + 1e-8) fp16 rounds the epsilon to 0, so the sum may become 0.
        floors = self.graph.constants(index) if node.op_type in having(Trait.FLOORS) else []
        for name in floors:
            fault = self._check_constant(name)
            if fault is not None and fault[1] < operators.SMALLEST_NORMAL:
                yield output, (f"is bounded away from 0 by {name}, which {fault[0]}", fault[1])
        if node.op_type == "Cast" and node.input[0] not in self.graph.floats:
            statistics = self._statistics(output)
            if statistics is not None and statistics.peak > operators.LARGEST_WHOLE:
                yield (
                    output,
                    (f"counts to {statistics.peak:.6g}; fp16 counts only to 2048", statistics.peak),
                )

    def _statistics(self, name: str) -> TensorStatistics | None:
        if not name:
            return None
        values = self.graph.view.constant(name)
        if values is not None and values.dtype == np.float32:
            return measure_array(values)
        return self.measured.tensors.get(name)

    def _check_node(self, index: int) -> tuple[str, float] | None:
        """Return why a candidate stays float32: a constant, a tensor or a partial sum; or None."""
        node = self.graph.view.nodes[index]
        for name in self.graph.constants(index):
            fault = self._check_constant(name, scale=node.op_type in having(Trait.QUANTIZES))
            if fault is not None:
                return f"its constant {name} {fault[0]}", fault[1]
        for name, fault in self._check_inputs(index):
            if name not in self.tensors:
                return f"its constant {name} {fault[0]}", fault[1]
        for name in self.graph.float_tensors(index):
            fault = self.tensors[name]
            if fault is not None:
                side = "output" if name in node.output else "input"
                return f"its {side} {name} {fault[0]}", fault[1]
        bound, reached = self.sums.get(index), self.measured.sums.get(index, 0.0)
        if bound is not None and reached > self.limit:
            return f"{bound.what} may reach {reached:.3g}", reached
        return None

    # Constants are checked once, since many nodes may read one.
    def _check_constant(self, name: str, scale: bool = False) -> tuple[str, float] | None:
        if name not in self.constants:
            values = numpy_helper.to_array(self.graph.view.initializers[name])
            self.constants[name] = _check_scale(values) if scale else _check_values(values)
        return self.constants[name]


def _check_values(values: np.ndarray) -> tuple[str, float] | None:
    """Return why a constant cannot be fp16; its values are final and need no margin."""
    statistics = measure_array(values)
    if statistics.nan:
        return "holds NaN", float("nan")
    if statistics.peak > operators.LARGEST:
        return f"reaches {statistics.peak:.3g}", statistics.peak
    if statistics.snr_db < LEAST_SNR_DB:
        if values.size == 1:
            return (
                f"is {statistics.peak:.2g}, which fp16 holds as {np.float16(statistics.peak):.2g}",
                statistics.peak,
            )
        snr_db = max(statistics.snr_db, 0.0)
        return (
            f"underflows: fp16 keeps {snr_db:.0f} dB of values up to {statistics.peak:.2g}",
            statistics.peak,
        )
    return None


def _check_scale(values: np.ndarray) -> tuple[str, float] | None:
    """Return why quantization scales cannot be fp16; each channel's scale has to be accurate."""
    stored = values.astype(np.float16).astype(np.float32)
    # A zero scale has no relative error; any other may be off by two roundings.
    error = np.abs(stored / np.where(values == 0, 1, values) - 1)
    if not np.isfinite(stored).all() or np.any(error > 2 * UNIT):
        worst = float(values.ravel()[int(np.argmax(error))])
        return f"is a scale of {worst:.2g}, which fp16 does not hold", worst
    return None
