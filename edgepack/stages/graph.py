"""Stages `export`, `simplify`, each pass on the graph, and `engine`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from edgepack import engine, graph, passes
from edgepack.context import BuildContext, Context, Graph, OutputKind, Reference, SampleSets
from edgepack.context.graph import (
    describe_shapes,
    describe_tensors,
    digest_model,
    parse_model,
)
from edgepack.errors import ChainError, GraphError, SpecError
from edgepack.ledger import PassResult, Stage
from edgepack.normalize import batch_dependent
from edgepack.plugins import attribute_faults, credit
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import output_keys
from edgepack.source.model import Source
from edgepack.stages.cached import fetch_or_compute, read_model, run_cached
from edgepack.stages.measure import measure, measure_reference
from edgepack.stages.repair import repair
from edgepack.stages.shapes import derive_profiles

if TYPE_CHECKING:
    import onnx

# Errors of a graph from torch.export that a traced graph may not have.
_TRACED_INSTEAD = ("axis-frozen", "axis-wrong", "export-wrong", "graph-rejected", "run-failed")

# Number of feeds on which a traced graph is compared with the model.
_TRACE_FEEDS = 8


def export(
    context: Context,
    source: Source,
    inputs: tuple[Tensor, ...],
    samples: SampleSets,
    reference: Reference,
) -> BuildContext:
    """Export the model to ONNX, and run every dynamic axis at a second size.

    Returns the context of everything that follows, with the exported graph.
    """
    request, cache, ledger = context.request, context.cache, context.ledger
    names = tuple(request.output_kinds)
    with ledger.stage("export") as stage:
        for_passes = bool(passes.select_domain("graph", request.chain))
        parts, compute = _plan_export(
            source, inputs, names, reference.feeds, request.target.opset, for_passes
        )
        model, _ = run_cached("export", parts, stage, cache, compute)
        exported = _type_outputs(model, request, reference.kinds, stage)
        measure_reference(model, reference, exported.outputs, stage)
    # Such a model answers a sample differently in another batch, and so on the device.
    dependent = batch_dependent(parse_model(model))
    if dependent:
        ledger.warn(
            "answers depend on the other samples of a batch: BatchNormalization is in training "
            f"mode ({', '.join(dependent[:3])}); export after model.eval() if that is not intended"
        )
    return BuildContext(request, cache, ledger, source, inputs, samples, reference, exported)


def _plan_export(
    source: Source,
    inputs: tuple[Tensor, ...],
    names_by_user: tuple[str, ...],
    feeds: Sequence[Mapping[str, np.ndarray]],
    opset: int,
    for_passes: bool,
) -> tuple[dict[str, object], Callable[[], PassResult[onnx.ModelProto]]]:
    """Return the key parts of an export, and the function that computes it.

    The first feed is the export's example; a traced graph is compared on more of them.
    """
    example = feeds[0]

    def compute() -> PassResult[onnx.ModelProto]:
        names = names_by_user or _find_names(source, inputs, example)
        try:
            result = _to_onnx(source, inputs, names, example, opset, for_passes)
            notes = _compare_sizes(result, source, inputs, feeds)
        except GraphError as error:
            # Only a module can be traced instead.
            fixed = source.onnx is not None or source.program is not None
            if fixed or error.code not in _TRACED_INSTEAD:
                raise
            traced = graph.export_traced(source.network, inputs, example, opset, names, for_passes)
            if traced is None:
                raise
            notes = _compare_sizes(traced, source, inputs, feeds)
            note = f"the graph of torch.export is wrong: {error.what}"
            result = replace(traced, notes=(note, *traced.notes))
        return replace(result, notes=(*result.notes, *notes))

    parts = {
        "source": source.key,
        "inputs": describe_tensors(inputs),
        "outputs": list(names_by_user),
        "opset": opset,
        "for_passes": for_passes,
        "example": describe_shapes(example),
    }
    return parts, compute


def _compare_sizes(
    result: PassResult[onnx.ModelProto],
    source: Source,
    inputs: tuple[Tensor, ...],
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[str, ...]:
    """Compare an exported graph with the original at other sizes of its dynamic axes."""
    promoted = cast("Sequence[str]", result.details.get("promoted", ()))
    floor = graph.floor_db(promoted)
    notes = graph.check_dynamic_axes(result.model, inputs, feeds[0], source.run, floor)
    # A trace follows one path through the network; further samples may need another one.
    if not result.details.get("traced"):
        return notes
    return (*notes, graph.check_feeds(result.model, feeds[:_TRACE_FEEDS], source.run, floor))


def _find_names(
    source: Source, inputs: tuple[Tensor, ...], example: Mapping[str, np.ndarray]
) -> tuple[str, ...] | None:
    """Return the source's names of its outputs; None if it has none, or a graph cannot use them."""
    names = source.output_names
    network = source.network
    if names is None and network is not None:
        source.run(example)
        names = output_keys(network)
    input_names = {tensor.name for tensor in inputs}
    # An ONNX graph needs distinct names for its inputs and outputs.
    if names and ("" in names or input_names.intersection(names)):
        return None
    return names


def _to_onnx(
    source: Source,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...] | None,
    example: Mapping[str, np.ndarray],
    opset: int,
    for_passes: bool,
) -> PassResult[onnx.ModelProto]:
    # A file in ONNX needs no export, and a torch.export program no tracing.
    if source.onnx is not None:
        return graph.load_onnx(source.onnx, opset, inputs, for_passes)
    if source.program is not None:
        return graph.export_program(source.program, opset, inputs, names, for_passes)
    return graph.export_module(source.network, inputs, example, opset, names, for_passes)


def _type_outputs(
    model: bytes, request: Request, kinds: Sequence[OutputKind], stage: Stage
) -> Graph:
    """Return a graph with the kinds of its outputs, and note the inferred ones."""
    inputs, outputs = graph.signature(parse_model(model))
    names = [tensor.name for tensor in outputs]
    if not set(request.output_kinds).issubset(names):
        raise SpecError(
            "outputs-differ",
            "the outputs in the manifest are not the model's",
            why=f"in the manifest: {', '.join(request.output_kinds)}; the model's: "
            f"{', '.join(names)}",
            hint="name each output, in the order in which the model returns them",
        )
    typed = []
    for tensor, output in zip(outputs, kinds, strict=True):
        kind, axis = output.kind, output.axis
        is_guess = kind == "scores" and output.reason and not output.by_labels
        if is_guess and not isinstance(tensor.shape[axis], int):
            # A dynamic axis holds positions, not classes.
            kind = "values"
        if output.reason and kind != "values":
            stage.note(
                f"{tensor.name} is read as {_READINGS[kind]}: {output.reason}; a manifest can set "
                "another kind"
            )
        elif kind == "values" and not request.output_kinds.get(tensor.name):
            stage.note(f"{tensor.name} is read as values: {_describe_comparison(tensor)}")
        typed.append(replace(tensor, kind=kind, axis=axis))
    return Graph(model, inputs, tuple(typed))


def _describe_comparison(tensor: Tensor) -> str:
    if tensor.dtype.startswith("float"):
        return "gates apply to its SNR, not to decisions"
    return "a gate applies to its share of equal elements"


_READINGS = {
    "scores": "class scores",
    "logit": "a logit that decides by its sign",
    "probability": "a probability that decides by 0.5",
    "classes": "integer classes",
}


def simplify(context: BuildContext) -> BuildContext:
    """Fold, fuse and clean the exported graph; the result is the original from here on."""
    exported = context.original
    with context.ledger.stage("simplify") as stage:
        untrusted = context.source.onnx is not None
        parts, compute = _plan_simplify(exported.model, context.reference, untrusted)
        model, _ = run_cached("simplify", parts, stage, context.cache, compute)
        context = replace(context, original=replace(exported, model=model))
        measure(context.original, context, stage)
    return context


def _plan_simplify(
    model: bytes, reference: Reference, untrusted: bool = False
) -> tuple[dict[str, object], Callable[[], PassResult[onnx.ModelProto]]]:
    """Return the key parts of a simplification, and the function that computes it."""
    parts: dict[str, object] = {"model": digest_model(model)}
    feeds = reference.feeds[0]
    return parts, lambda: graph.simplify(parse_model(model), feeds, untrusted=untrusted)


def export_again(source: Source, context: BuildContext) -> tuple[Graph, tuple[str, ...]]:
    """Export and simplify a module changed by a pass; return its graph, and notes.

    The graph has the inputs and outputs of the original.

    Raises ChainError `chain-outputs` if its outputs are of other shapes or types.
    """
    original, reference, request = context.original, context.reference, context.request
    names = tuple(tensor.name for tensor in original.outputs)
    for_passes = bool(passes.select_domain("graph", request.chain))
    parts, compute = _plan_export(
        source, context.inputs, names, reference.feeds, request.target.opset, for_passes
    )
    exported, _ = fetch_or_compute("export", parts, context.cache, compute)
    parts, compute = _plan_simplify(read_model(exported), reference)
    simplified, _ = fetch_or_compute("simplify", parts, context.cache, compute)
    model = read_model(simplified)
    # The names are the original's, so each output has to keep its shape and type.
    _, outputs = graph.signature(parse_model(model))
    for output, first in zip(outputs, original.outputs, strict=True):
        if output.dtype != first.dtype or not _are_alike(output.shape, first.shape):
            raise ChainError(
                "chain-outputs",
                f"the pass changed the shape or type of the output {first.name}",
                why=f"it is {output}; the original's is {first}",
                hint="the device expects the original's outputs",
            )
    return replace(original, model=model), tuple(exported.document["notes"])


def _are_alike(one: Sequence[int | str], other: Sequence[int | str]) -> bool:
    """Return True for shapes of one rank with equal fixed sizes; names of axes do not matter.

    ("batch", 10) and ("N", 10) match, ("batch", 10) and ("batch", 12) do not.
    """
    if len(one) != len(other):
        return False
    for size, expected in zip(one, other, strict=True):
        dynamic = isinstance(size, str) or isinstance(expected, str)
        if size != expected and not dynamic:
            return False
    return True


def apply_graph_pass(step: passes.Step, before: Graph, context: BuildContext) -> Graph:
    """Apply one pass to the graph."""
    options = step.read()
    samples, samples_digest = None, None
    if "calibration" in options.needs:
        samples = context.samples.calibration
        samples_digest = context.samples.lint.digests.get("calibration")
    inputs = (parse_model(before.model), samples, options, context.ledger.progress)
    # A repair reuses the calibration of the pass for its trials; `cache` creates them once, and not
    # at all if the pass comes from the cache and misses no gate.
    graph_pass = step.graph_pass
    trials = None
    if options.repairs and isinstance(graph_pass, passes.PartialPass):
        trials = functools.cache(functools.partial(graph_pass.partial, *inputs))

    def compute() -> PassResult[onnx.ModelProto]:
        with attribute_faults(step.plugin):
            if trials is not None:
                return trials().result()
            return graph_pass.apply(*inputs)

    with context.ledger.stage(step.name) as stage:
        parts = {
            "model": digest_model(before.model),
            "samples": samples_digest,
            **step.key_parts(),
        }
        model, details = run_cached(step.name, parts, stage, context.cache, compute)
        stage.note(*credit(step.plugin))
        result = replace(
            before,
            model=model,
            integer_only=bool(details.get("integer_only", False)),
            before=before,
            trials=trials,
        )
        measure(result, context, stage)
    if trials is None:
        return result
    return repair(before, result, parts, trials, context)


def build_engine(before: Graph, context: BuildContext) -> Graph:
    """Build the target's engine from the ONNX."""
    request, ledger = context.request, context.ledger
    with ledger.stage("engine") as stage:
        shapes = derive_profiles(request, before.inputs, context.reference.feeds[0], ledger)
        built = engine.build(before.model, request.target, shapes)
        stage.note(*built.notes, *credit(engine.find_plugin(request.target.engine)))
        stage.set(bytes=len(built.model))
        stage.detail(**built.details)
    ledger.warn(*built.warnings)
    return replace(before, model=built.model, profiles=shapes)
