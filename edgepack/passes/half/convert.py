"""Run the pass: sort the nodes, measure, place, emit."""

from __future__ import annotations

import time
from itertools import chain

import onnx

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress
from edgepack.listing import join_lines
from edgepack.onnx_tools.copies import with_outputs
from edgepack.onnx_tools.limits import NEWEST_OPSET, OLDEST_OPSET, default_opset
from edgepack.onnx_tools.names import check_names
from edgepack.onnx_tools.stream import session
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.half.candidates import Graph, title
from edgepack.passes.half.figures import details, notes
from edgepack.passes.half.measurements import Measurements, measure
from edgepack.passes.half.mixed_graph import emit
from edgepack.passes.half.options import HalfOptions
from edgepack.passes.half.placement import Placement, place
from edgepack.passes.half.sums import Sum, partial_sum


def convert(
    model: onnx.ModelProto, samples: Samples, options: HalfOptions, progress: Progress
) -> PassResult[onnx.ModelProto]:
    """Run every phase and return the fp16 model with its figures; see `half`."""
    started = time.perf_counter()
    opset = default_opset(model)
    _check_opset(opset)
    view = GraphView(model)
    titles = [title(node, index) for index, node in enumerate(view.nodes)]
    check_names(options.keep, titles, "half-keep-unknown", "float32")
    kinds = _tensor_types(model, view)
    floats = frozenset(name for name, kind in kinds.items() if kind == "tensor(float)")
    graph = Graph(view, floats, opset, options.keep)
    names = list(dict.fromkeys(chain.from_iterable(map(graph.float_tensors, graph.candidates))))
    # Integer kernels accumulate in 32 bits, so quantized layers need no bound.
    sums: dict[int, Sum] = {}
    for index in graph.candidates:
        bound = None
        if index not in graph.integer:
            bound = partial_sum(view, index, opset)
        if bound is not None:
            sums[index] = bound
    measured = Measurements({}, {}, 0)
    # A model that is quantized throughout has nothing to measure.
    if names:
        measured = measure(
            model, names, graph.divisors(), sums, samples, options.batch_size,
            progress.advance, progress.expect,
        )  # fmt: skip
    placement = place(graph, sums, measured, options)
    if not placement.half:
        raise _nothing_to_do(placement)
    # Tensors that the model already has in fp16 are named as well.
    existing = [name for name in view.producer if kinds.get(name) == "tensor(float16)"]
    result, casts = emit(model, graph, placement, existing)
    figures = details(graph, placement, options, measured.samples, casts)
    figures["seconds"] = round(time.perf_counter() - started, 3)
    return PassResult(result, True, notes(figures), figures)


def _check_opset(opset: int) -> None:
    """Raise ChainError half-opset for an opset that the pass does not support."""
    what = f"a model of opset {opset} cannot be converted to fp16"
    hint = f"export with an opset of {OLDEST_OPSET} to {NEWEST_OPSET}"
    if opset > NEWEST_OPSET:
        why = f"the oldest supported onnxruntime (1.19) stops at opset {NEWEST_OPSET}"
        raise ChainError("half-opset", what, why=why, hint=hint)
    if opset < OLDEST_OPSET:
        why = f"Softmax has another meaning before opset {OLDEST_OPSET}"
        raise ChainError("half-opset", what, why=why, hint=hint)


def _tensor_types(model: onnx.ModelProto, view: GraphView) -> dict[str, str]:
    """Return the types of all tensors except constants, in onnxruntime's notation."""
    outputs = list(filter(None, chain.from_iterable(node.output for node in view.nodes)))
    runner = session(with_outputs(model, outputs))
    values = (
        *runner.get_inputs(), *runner.get_overridable_initializers(), *runner.get_outputs()
    )  # fmt: skip
    return {value.name: value.type for value in values}


def _nothing_to_do(placement: Placement) -> ChainError:
    reasons = [f"{node.name} ({node.operator}): {node.reason}" for node in placement.float_nodes]
    if placement.integer:
        reasons.insert(0, "its layers are already quantized")
    return ChainError(
        "half-nothing-to-do",
        "no node of the model can be converted to fp16",
        why=join_lines(reasons, 8) or "no node computes in float32",
        hint="build without this pass: --chain none, or --chain quantize",
    )
