"""Stages `export`, `simplify`, each pass of the chain, and `engine`: the graph that will ship."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgepack import chain, engine, graph
from edgepack.cache import Cache, Entry
from edgepack.errors import ChainError, SpecError
from edgepack.ledger import Ledger, PassResult, Stage
from edgepack.request import Request
from edgepack.runtime.metrics import compare
from edgepack.runtime.rounding import rounded
from edgepack.runtime.tensor import Tensor
from edgepack.runtime.tensorrt_build import Profiles
from edgepack.source.model import Source
from edgepack.stages.original import Reference
from edgepack.stages.samples import SampleSets
from edgepack.stages.shapes import profiles


@dataclass(frozen=True)
class Graph:
    """The model as a serialised ONNX, with what is known of it.

    Attributes:
        model: serialised.
        inputs: of the model.
        outputs: of the model, their kinds settled.
        integer_only: whether its arithmetic is integer from the first quantization to the last.
        profiles: shapes that the engine is built for, of inputs with a dynamic axis.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    integer_only: bool = False
    profiles: Profiles = field(default_factory=dict)


def _parsed(model: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(model)


def _through_cache(
    name: str,
    parts: Mapping[str, Any],
    stage: Stage,
    cache: Cache,
    compute: Callable[[], PassResult[Any]],
) -> tuple[bytes, Mapping[str, Any]]:
    """A stage's model and details: from the cache, else computed and kept there."""
    entry, cached = _kept(name, parts, cache, compute)
    if cached:
        stage.set(status="cached")
    write_down(entry.document, stage)
    details: Mapping[str, Any] = entry.document["details"]
    return _model(entry), details


def _kept(
    name: str, parts: Mapping[str, Any], cache: Cache, compute: Callable[[], PassResult[Any]]
) -> tuple[Entry, bool]:
    """The cache's entry of a graph, computed where there was none; and whether there was one."""
    key = cache.key(name, parts)
    entry = cache.get(name, key)
    if entry is not None:
        return entry, True
    result = compute()
    model: bytes = result.model.SerializeToString(deterministic=True)
    return cache.put(name, key, {"model.onnx": model}, document_of(result)), False


def document_of(result: PassResult[Any]) -> dict[str, Any]:
    """What the cache keeps of a result beside its model."""
    return {
        "notes": list(result.notes),
        "details": dict(result.details),
        "changed": result.changed,
    }


def write_down(document: Mapping[str, Any], stage: Stage) -> None:
    """Write what the cache has of a result into a stage's record."""
    if not document["changed"]:
        stage.set(status="skipped")
    stage.note(*document["notes"])
    stage.detail(**document["details"])


def _model(entry: Entry) -> bytes:
    return (entry.folder / "model.onnx").read_bytes()


def measure(model: bytes, reference: Reference, outputs: Sequence[Tensor], stage: Stage) -> None:
    """Write size, parameters and parity with the original into a stage's record."""
    proto = _parsed(model)
    runner = graph.Runner(rounded(model), literal=graph.signed_activations(proto))
    pairs = [
        (original, runner.run(feed))
        for feed, original in zip(reference.feeds, reference.original, strict=True)
    ]
    stage.set(
        bytes=len(model),
        parameters=graph.stats(proto).parameters,
        parity=compare(outputs, pairs),
    )


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
        parts, compute = _export(found, inputs, names, reference.feeds[0], request.target.opset)
        model, _ = _through_cache("export", parts, stage, cache, compute)
        exported = _graph(model, found, request, reference.labelled, stage)
        measure(model, reference, exported.outputs, stage)
    return exported


def _export(
    found: Source,
    inputs: tuple[Tensor, ...],
    stated: tuple[str, ...],
    example: Mapping[str, np.ndarray],
    opset: int,
) -> tuple[dict[str, Any], Callable[[], PassResult[Any]]]:
    """What an export depends on, and what computes it."""

    def compute() -> PassResult[Any]:
        result = _to_onnx(found, inputs, stated or found.output_names, example, opset)
        notes = graph.check_dynamic_axes(result.model, inputs, example, found.run)
        return replace(result, notes=(*result.notes, *notes))

    parts = {
        "source": found.digest,
        "inputs": [tensor.to_json() for tensor in inputs],
        "outputs": list(stated),
        "opset": opset,
        "example": {name: list(array.shape) for name, array in example.items()},
    }
    return parts, compute


def _to_onnx(
    found: Source,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...] | None,
    example: Mapping[str, np.ndarray],
    opset: int,
) -> PassResult[Any]:
    if found.onnx is not None:
        return graph.load_onnx(found.onnx, opset)
    if found.program is not None:
        return graph.export_program(found.program, opset, inputs, names)
    return graph.export_module(found.module, inputs, example, opset, names)


def _graph(model: bytes, found: Source, request: Request, labelled: bool, stage: Stage) -> Graph:
    """Inputs and outputs of a graph; an output's kind is stated, known, or inferred aloud."""
    inputs, outputs = graph.signature(_parsed(model))
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
    for tensor in outputs:
        kind = request.output_kinds.get(tensor.name) or found.output_kind
        if kind is None:
            kind = "scores" if _looks_like_scores(tensor, outputs, labelled) else "values"
            if kind == "scores":
                stage.note(f"{tensor.name} is read as class scores; a manifest can say otherwise")
            else:
                stage.note(f"{tensor.name} is read as values: its SNR is gated, no decision is")
        settled.append(replace(tensor, kind=kind))
    return Graph(model, inputs, tuple(settled))


def _looks_like_scores(tensor: Tensor, outputs: Sequence[Tensor], labelled: bool) -> bool:
    """One row of several floats per sample, and either the only output or labelled samples."""
    if tensor.rank != 2 or not tensor.dtype.startswith("float"):
        return False
    classes = tensor.shape[1]
    return isinstance(classes, int) and classes > 1 and (labelled or len(outputs) == 1)


def simplify(before: Graph, reference: Reference, cache: Cache, ledger: Ledger) -> Graph:
    """Fold, fuse and clean the graph."""
    with ledger.stage("simplify") as stage:
        parts, compute = _simplify(before.model, reference)
        model, _ = _through_cache("simplify", parts, stage, cache, compute)
        measure(model, reference, before.outputs, stage)
    return replace(before, model=model)


def _simplify(
    model: bytes, reference: Reference
) -> tuple[dict[str, Any], Callable[[], PassResult[Any]]]:
    """What a simplification depends on, and what computes it."""
    parts = {"model": _digest(model)}
    return parts, lambda: graph.simplify(_parsed(model), reference.feeds[0])


def export_again(
    found: Source,
    inputs: tuple[Tensor, ...],
    original: Graph,
    opset: int,
    reference: Reference,
    cache: Cache,
) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a module that a pass changed, exported and simplified; and what to note.

    It has the inputs and outputs of the original, whose graph stays the first one.

    Raises ChainError `chain-outputs` where its outputs are of other shapes or types.
    """
    names = tuple(tensor.name for tensor in original.outputs)
    parts, compute = _export(found, inputs, names, reference.feeds[0], opset)
    exported, _ = _kept("export", parts, cache, compute)
    parts, compute = _simplify(_model(exported), reference)
    simplified, _ = _kept("simplify", parts, cache, compute)
    model = _model(simplified)
    _, outputs = graph.signature(_parsed(model))
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


def apply(
    step: chain.Step,
    before: Graph,
    samples: SampleSets,
    reference: Reference,
    cache: Cache,
    ledger: Ledger,
) -> Graph:
    """Apply one pass on the graph."""
    options = step.read()
    calibrated = "calibration" in options.needs
    calibration = samples.calibration if calibrated else None
    with ledger.stage(step.name) as stage:
        parts = {
            "model": _digest(before.model),
            "options": dict(step.options),
            "samples": samples.lint.digests.get("calibration") if calibrated else None,
        }
        model, details = _through_cache(
            step.name, parts, stage, cache,
            lambda: step.known.apply(_parsed(before.model), calibration, options, ledger.progress),
        )  # fmt: skip
        measure(model, reference, before.outputs, stage)
    return replace(before, model=model, integer_only=bool(details.get("integer_only", False)))


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


def _digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()
