"""Stages `export`, `simplify`, each pass of the chain, and `engine`: the graph that will ship."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgepack import chain, engine, graph
from edgepack.cache import Cache
from edgepack.errors import ChainError, GraphError, SpecError
from edgepack.ledger import Ledger, PassResult, Stage
from edgepack.normalize import batch_dependent
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import output_keys
from edgepack.source.model import Source
from edgepack.stages.given import Given, Graph, digest_of, parsed
from edgepack.stages.kept import kept, read_model, through_cache
from edgepack.stages.labels import OutputKind
from edgepack.stages.measure import look, measure
from edgepack.stages.original import Reference
from edgepack.stages.repair import repair
from edgepack.stages.shapes import profiles

# Errors of a graph that torch.export made and that a trace may not have.
_TRACED_INSTEAD = ("axis-frozen", "axis-wrong", "export-wrong", "graph-rejected", "run-failed")

# Feeds on which a traced graph is compared with the model.
_TRACE_FEEDS = 8


def export(
    request: Request,
    found: Source,
    inputs: tuple[Tensor, ...],
    reference: Reference,
    cache: Cache,
    ledger: Ledger,
) -> Graph:
    """Torch to ONNX; every dynamic axis is run at a second size."""
    names = tuple(request.output_kinds)
    with ledger.stage("export") as stage:
        for_passes = bool(chain.of_domain("graph", request.chain))
        parts, compute = _export(
            found, inputs, names, reference.feeds, request.target.opset, for_passes
        )
        model, _ = through_cache("export", parts, stage, cache, compute)
        exported = _graph(model, request, reference.kinds, stage)
        look(model, reference, exported.outputs, stage)
    dependent = batch_dependent(parsed(model))
    if dependent:
        ledger.warn(
            "answers depend on the other samples of a batch: BatchNormalization is in training "
            f"mode ({', '.join(dependent[:3])}); export after model.eval() if that is not meant"
        )
    return exported


def _export(
    found: Source,
    inputs: tuple[Tensor, ...],
    stated: tuple[str, ...],
    feeds: Sequence[Mapping[str, np.ndarray]],
    opset: int,
    for_passes: bool,
) -> tuple[dict[str, Any], Callable[[], PassResult[Any]]]:
    """Return what an export depends on, and what computes it.

    The first feed is the example that is exported on; a trace is compared on more of them.
    """
    example = feeds[0]

    def compute() -> PassResult[Any]:
        names = stated or _own_names(found, inputs, example)
        try:
            result = _to_onnx(found, inputs, names, example, opset, for_passes)
            notes = _check(result, found, inputs, feeds)
        except GraphError as error:
            # Only of a module can a trace be had as well.
            fixed = found.onnx is not None or found.program is not None
            if fixed or error.code not in _TRACED_INSTEAD:
                raise
            traced = graph.export_traced(found.module, inputs, example, opset, names, for_passes)
            if traced is None:
                raise
            notes = _check(traced, found, inputs, feeds)
            note = f"the graph of torch.export is wrong: {error.what}"
            result = replace(traced, notes=(note, *traced.notes))
        return replace(result, notes=(*result.notes, *notes))

    parts = {
        "source": found.key,
        "inputs": [tensor.to_json() for tensor in inputs],
        "outputs": list(stated),
        "opset": opset,
        "for_passes": for_passes,
        "example": {name: list(array.shape) for name, array in example.items()},
    }
    return parts, compute


def _check(
    result: PassResult[Any],
    found: Source,
    inputs: tuple[Tensor, ...],
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[str, ...]:
    """Run an exported graph at other sizes of its dynamic axes, beside the original."""
    floor = graph.floor_db(result.details.get("promoted", ()))
    notes = graph.check_dynamic_axes(result.model, inputs, feeds[0], found.run, floor)
    if not result.details.get("traced"):
        return notes
    return (*notes, graph.check_feeds(result.model, feeds[:_TRACE_FEEDS], found.run, floor))


def _own_names(
    found: Source, inputs: tuple[Tensor, ...], example: Mapping[str, np.ndarray]
) -> tuple[str, ...] | None:
    """What the source calls its outputs, where a graph can call them so."""
    names = found.output_names
    if names is None and found.module is not None:
        found.run(example)
        names = output_keys(found.module)
    taken = {tensor.name for tensor in inputs}
    return None if names and ("" in names or taken.intersection(names)) else names


def _to_onnx(
    found: Source,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...] | None,
    example: Mapping[str, np.ndarray],
    opset: int,
    for_passes: bool,
) -> PassResult[Any]:
    if found.onnx is not None:
        return graph.load_onnx(found.onnx, opset, inputs, for_passes)
    if found.program is not None:
        return graph.export_program(found.program, opset, inputs, names, for_passes)
    return graph.export_module(found.module, inputs, example, opset, names, for_passes)


def _graph(model: bytes, request: Request, kinds: Sequence[OutputKind], stage: Stage) -> Graph:
    """Return a graph whose outputs have their kinds, and note those that nobody stated."""
    inputs, outputs = graph.signature(parsed(model))
    unknown = set(request.output_kinds) - {tensor.name for tensor in outputs}
    if unknown:
        raise SpecError(
            "outputs-differ",
            "the outputs that the manifest states are not the model's",
            why=f"stated: {', '.join(request.output_kinds)}; the model's: "
            f"{', '.join(tensor.name for tensor in outputs)}",
            hint="name each output, in the order in which the model returns them",
        )
    settled = []
    for tensor, output in zip(outputs, kinds, strict=True):
        kind, axis = output.kind, output.axis
        guessed = kind == "scores" and output.reason and not output.by_labels
        if guessed and not isinstance(tensor.shape[axis], int):
            # A dynamic axis holds positions, and no classes.
            kind = "values"
        if output.reason and kind != "values":
            stage.note(
                f"{tensor.name} is read as {_READINGS[kind]}: {output.reason}; a manifest can say "
                "otherwise"
            )
        elif kind == "values" and not request.output_kinds.get(tensor.name):
            stage.note(f"{tensor.name} is read as values: {_compared_by(tensor)}")
        settled.append(replace(tensor, kind=kind, axis=axis))
    return Graph(model, inputs, tuple(settled))


def _compared_by(tensor: Tensor) -> str:
    if tensor.dtype.startswith("float"):
        return "its SNR is gated, no decision is"
    return "its share of equal elements is gated"


_READINGS = {
    "scores": "class scores",
    "logit": "a logit that decides by its sign",
    "probability": "a probability that decides by 0.5",
    "classes": "integer classes",
}


def simplify(given: Given, cache: Cache, ledger: Ledger) -> Given:
    """Fold, fuse and clean the exported graph: what comes out is the original from here on."""
    exported = given.original
    with ledger.stage("simplify") as stage:
        untrusted = given.source.onnx is not None
        parts, compute = _simplify(exported.model, given.reference, untrusted)
        model, _ = through_cache("simplify", parts, stage, cache, compute)
        given = replace(given, original=replace(exported, model=model))
        measure(given.original, given, cache, ledger, stage)
    return given


def _simplify(
    model: bytes, reference: Reference, untrusted: bool = False
) -> tuple[dict[str, Any], Callable[[], PassResult[Any]]]:
    """What a simplification depends on, and what computes it."""
    parts = {"model": digest_of(model)}
    feeds = reference.feeds[0]
    return parts, lambda: graph.simplify(parsed(model), feeds, untrusted=untrusted)


def export_again(
    found: Source,
    inputs: tuple[Tensor, ...],
    original: Graph,
    opset: int,
    for_passes: bool,
    reference: Reference,
    cache: Cache,
) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a module that a pass changed, exported and simplified; and what to note.

    It has the inputs and outputs of the original, whose graph stays the first one.

    Raises ChainError `chain-outputs` where its outputs are of other shapes or types.
    """
    names = tuple(tensor.name for tensor in original.outputs)
    parts, compute = _export(found, inputs, names, reference.feeds, opset, for_passes)
    exported, _ = kept("export", parts, cache, compute)
    parts, compute = _simplify(read_model(exported), reference)
    simplified, _ = kept("simplify", parts, cache, compute)
    model = read_model(simplified)
    _, outputs = graph.signature(parsed(model))
    for made, first in zip(outputs, original.outputs, strict=True):
        if made.dtype != first.dtype or not _alike(made.shape, first.shape):
            raise ChainError(
                "chain-outputs",
                f"the output {first.name} is not what it was before the pass",
                why=f"it is {made}; the original's is {first}",
                hint="the device expects the original's outputs",
            )
    return replace(original, model=model), tuple(exported.document["notes"])


def _alike(one: Sequence[int | str], other: Sequence[int | str]) -> bool:
    """Shapes of the same rank whose fixed sizes agree; how a free one is called does not matter."""
    return len(one) == len(other) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(one, other, strict=True)
    )


def apply(step: chain.Step, before: Graph, given: Given, cache: Cache, ledger: Ledger) -> Graph:
    """Apply one pass on the graph."""
    options = step.read()
    calibrated = "calibration" in options.needs
    inputs = (
        parsed(before.model),
        given.samples.calibration if calibrated else None,
        options,
        ledger.progress,
    )
    # What a repair tries comes out of the one calibration that the pass itself takes.
    trials = functools.cache(lambda: step.known.trials(*inputs))
    with ledger.stage(step.name) as stage:
        parts = {
            "model": digest_of(before.model),
            "options": dict(step.options),
            "samples": given.samples.lint.digests.get("calibration") if calibrated else None,
        }
        model, details = through_cache(
            step.name, parts, stage, cache,
            lambda: trials().result() if options.repairs else step.known.apply(*inputs),
        )  # fmt: skip
        made = replace(before, model=model, integer_only=bool(details.get("integer_only", False)))
        measure(made, given, cache, ledger, stage)
    return repair(before, made, parts, trials, given, cache, ledger) if options.repairs else made


def build_engine(before: Graph, request: Request, reference: Reference, ledger: Ledger) -> Graph:
    """From ONNX to what the target's engine runs."""
    with ledger.stage("engine") as stage:
        builder = engine.ENGINES[request.target.engine]
        shapes = profiles(request, before.inputs, reference.feeds[0], ledger)
        built = builder.build(before.model, request.target, shapes)
        stage.note(*built.notes)
        stage.set(bytes=len(built.model))
        stage.detail(**built.details)
    ledger.warn(*built.warnings)
    return replace(before, model=built.model, profiles=shapes)
