"""Measure the magnitudes of activation channels, streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack.data.samples import Samples
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.limits import default_opset
from edgepack.onnx_tools.stream import run_batch, session
from edgepack.onnx_tools.view import GraphView


@dataclass(frozen=True)
class ChannelMagnitudes:
    """Magnitudes of the channels of one tensor.

    Attributes:
        largest: (channels,) largest absolute value.
        square: (channels,) mean square.
    """

    largest: np.ndarray
    square: np.ndarray


def observe_channels(
    model: onnx.ModelProto,
    view: GraphView,
    axes: Mapping[str, int],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, ChannelMagnitudes]:
    """Measure the channels of some tensors, by reductions appended to the graph.

    Args:
        model: float32, prepared.
        view: of that model.
        axes: axis of the channels, by tensor.
        samples, batch_size, advance: as in `equalize`.
    """
    if not axes:
        return {}
    extended = copied(model)
    graph = extended.graph
    del graph.output[:]
    opset = default_opset(extended)
    for position, (name, axis) in enumerate(axes.items()):
        others = [a for a in range(len(view.shapes[name])) if a != axis]
        for kind in ("ReduceMax", "ReduceMin", "ReduceMean"):
            source, output = name, f"edgepack_{kind}_{position}"
            if kind == "ReduceMean":
                source = f"edgepack_square_{position}"
                graph.node.append(helper.make_node("Mul", [name, name], [source]))
            inputs, settings = [source], {"axes": others, "keepdims": 0}
            if not others:  # every value is a channel; reducing over no axes would mean all
                kind, settings = "Identity", {}
            elif opset >= 18:  # from there on they are an input
                inputs.append(f"{output}_axes")
                graph.initializer.append(numpy_helper.from_array(np.array(others), inputs[1]))
                settings = {"keepdims": 0}
            graph.node.append(helper.make_node(kind, inputs, [output], **settings))
            graph.output.append(onnx.ValueInfoProto(name=output))
    runner = session(extended)
    largest: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    count = 0
    for batch in samples.batches(batch_size):
        results = iter(run_batch(runner, batch))
        for name in axes:
            high, low, mean = islice(results, 3)
            size = np.maximum(np.abs(high), np.abs(low)).astype(np.float64)
            largest[name] = np.maximum(largest.get(name, 0.0), size)
            squares[name] = squares.get(name, 0.0) + mean.astype(np.float64) * batch.count
        count += batch.count
        advance(batch.count)
    magnitudes = {}
    for name, peak in largest.items():
        magnitudes[name] = ChannelMagnitudes(peak, squares[name] / count)
    return magnitudes
