"""The pass itself: sort the nodes, measure, place, write."""

from __future__ import annotations

import time

import onnx

from edgepack.chain.graphs.names import check_names
from edgepack.chain.graphs.stream import exposing, session
from edgepack.chain.graphs.view import GraphView
from edgepack.chain.half.emit import emit
from edgepack.chain.half.graph import Graph, title
from edgepack.chain.half.measure import Measured, measure
from edgepack.chain.half.options import HalfOptions
from edgepack.chain.half.place import Placement, place
from edgepack.chain.half.summary import details, notes
from edgepack.chain.half.sums import partial_sum
from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress

# Softmax has meant the same since 13; the oldest supported onnxruntime (1.19) stops at 21.
OLDEST_OPSET, NEWEST_OPSET = 13, 21


def convert(
    model: onnx.ModelProto, samples: Samples, options: HalfOptions, progress: Progress
) -> PassResult[onnx.ModelProto]:
    """Run every phase; see `half`."""
    started = time.perf_counter()
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ChainError(
            "half-opset",
            f"a model of opset {opset} cannot become fp16",
            why="the oldest supported onnxruntime (1.19) stops at opset 21"
            if opset > NEWEST_OPSET
            else "Softmax means something else before opset 13",
            hint=f"export with an opset of {OLDEST_OPSET} to {NEWEST_OPSET}",
        )
    view = GraphView(model)
    known = [title(node, index) for index, node in enumerate(view.nodes)]
    check_names(options.keep, known, "half-keep-unknown", "float32")
    kinds = _kinds(model, view)
    floats = frozenset(name for name, kind in kinds.items() if kind == "tensor(float)")
    graph = Graph(view, floats, opset, options.keep)
    names = list(dict.fromkeys(n for i in graph.candidates for n in graph.touched(i)))
    sums = {
        index: bound
        for index in graph.candidates
        if index not in graph.integer and (bound := partial_sum(view, index, opset))
    }
    measured = Measured({}, {}, 0)
    if names:
        measured = measure(
            model, names, graph.divisors(), sums, samples, options.batch_size,
            progress.advance, progress.expect,
        )  # fmt: skip
    placement = place(graph, sums, measured, options)
    if not placement.half:
        raise _nothing_to_do(placement)
    # What the model has in fp16 by itself is named with the rest.
    own = [name for name in view.producer if kinds.get(name) == "tensor(float16)"]
    result, casts = emit(model, graph, placement, own)
    figures = details(graph, placement, options, measured.samples, casts)
    figures["seconds"] = round(time.perf_counter() - started, 3)
    return PassResult(result, True, notes(figures), figures)


def _kinds(model: onnx.ModelProto, view: GraphView) -> dict[str, str]:
    """The types of all tensors but constants, as onnxruntime knows and calls them."""
    made = [name for node in view.nodes for name in node.output if name]
    runner = session(exposing(model, made))
    values = (
        *runner.get_inputs(), *runner.get_overridable_initializers(), *runner.get_outputs()
    )  # fmt: skip
    return {value.name: value.type for value in values}


def _nothing_to_do(placement: Placement) -> ChainError:
    reasons = [f"{kept.name} ({kept.operator}): {kept.reason}" for kept in placement.kept]
    if placement.integer:
        reasons.insert(0, "its layers are quantized already")
    more = f"\nand {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return ChainError(
        "half-nothing-to-do",
        "nothing of the model can become fp16",
        why="\n".join(reasons[:8]) + more or "it computes nothing in float32",
        hint="build it without the pass: --chain none, or --chain quantize",
    )
