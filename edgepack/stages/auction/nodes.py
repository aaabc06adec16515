"""Time of every layer of a graph, by onnxruntime's profiler.

onnxruntime renames and fuses nodes. In the float graph "/0/Conv" and the activation behind it
become "/0/Relu_output_0_nchwc", in the int8 graph "/0/Conv_token_9", and operators without a name
of the graph stand around them: casts between layouts, Q/DQ nodes, parts of a HardSwish. Nodes run
in one order in both graphs, so those without a name of their own count for the layer before them.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack import files
from edgepack.context.graph import parse_model
from edgepack.onnx_tools.sessions import create_session

if TYPE_CHECKING:
    from onnx import GraphProto

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
# Seconds of profiled calls, and their number: the profile of a small network would fill the disk.
SECONDS, FEWEST, MOST = 0.3, 5, 100
_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|_kernel_time|_quant)+$")
# Operators that onnxruntime fuses into the layer before them, at most.
_FUSED = 3


@dataclass(frozen=True)
class NodeTime:
    """Node of a profile, with its name in the graph as far as it has one; in microseconds."""

    name: str
    operator: str
    duration: float


def profile(model: bytes, feed: Mapping[str, np.ndarray]) -> list[NodeTime]:
    """Return the nodes that onnxruntime runs, in their order.

    Args:
        model: serialised.
        feed: input of the calls.
    """
    with files.temporary_folder() as folder:
        session = create_session(model, profile_to=folder / "profile")
        until, calls = time.perf_counter() + SECONDS, 0
        while calls < FEWEST or (calls < MOST and time.perf_counter() < until):
            session.run(None, feed)
            calls += 1
        events = json.loads(Path(session.end_profiling()).read_bytes())
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"], event["args"]["op_name"])
            times.setdefault(key, []).append(event["dur"])
    nodes = []
    for (name, kind), durations in times.items():
        nodes.append(NodeTime(_SUFFIXES.sub("", name), kind, statistics.median(durations)))
    return nodes


def time_layers(
    nodes: Sequence[NodeTime], model: bytes, layers: Collection[str]
) -> dict[str, float]:
    """Return the microseconds of each layer, with the nodes up to the next one.

    Args:
        nodes: profile of the model, or of its quantized form.
        model: serialised.
        layers: names of the layers; those that onnxruntime removed are absent in the result.
    """
    owners = _find_owners(parse_model(model).graph, layers)
    times: dict[str, float] = {}
    current = ""
    for node in nodes:
        current = owners.get(node.name, current)
        if current:
            times[current] = times.get(current, 0.0) + node.duration
    return times


def measure_conversion(nodes: Sequence[NodeTime]) -> float:
    """Return the microseconds of a change between float and int8: two nodes, for the layout too."""
    durations = [node.duration for node in nodes if node.operator in CONVERSIONS]
    return 2 * statistics.median(durations) if durations else 0.0


def find_share(nodes: Sequence[NodeTime], operators: Collection[str]) -> float:
    """Return the share of the time that nodes of some operators take."""
    total = sum(node.duration for node in nodes)
    return sum(node.duration for node in nodes if node.operator in operators) / max(total, 1e-9)


def _find_owners(proto: GraphProto, layers: Collection[str]) -> dict[str, str]:
    """Return the layer by every name that onnxruntime may give to its node."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(proto.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    owners = {}
    for node in proto.node:
        if node.name not in layers:
            continue
        owners[node.name] = node.name
        # A fused node takes the name of the last tensor that it computes: follow the only reader.
        output = node.output[0]
        for _ in range(_FUSED):
            owners.setdefault(output, node.name)
            following = readers.get(output, [])
            if len(following) != 1 or proto.node[following[0]].name in layers:
                break
            output = proto.node[following[0]].output[0]
    return owners
