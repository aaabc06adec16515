"""Stages `export`, `simplify`, each pass of the chain, and `engine`: the graph that will ship."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepack import chain, engine, graph
from edgepack.cache import Cache
from edgepack.errors import SpecError
from edgepack.ledger import Ledger, PassResult, Stage
from edgepack.request import Request
from edgepack.runtime.metrics import compare
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages.original import Reference
from edgepack.stages.samples import SampleSets


@dataclass(frozen=True)
class Graph:
    """The model as a serialised ONNX, with what is known of it.

    Attributes:
        model: serialised.
        inputs: of the model.
        outputs: of the model, their kinds settled.
        integer_only: whether its arithmetic is integer from the first quantization to the last.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    integer_only: bool = False


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
    key = cache.key(name, parts)
    entry = cache.get(name, key)
    if entry is None:
        result = compute()
        model: bytes = result.model.SerializeToString(deterministic=True)
        document = {
            "notes": list(result.notes),
            "details": dict(result.details),
            "changed": result.changed,
        }
        entry = cache.put(name, key, {"model.onnx": model}, document)
    else:
        model = (entry.folder / "model.onnx").read_bytes()
        stage.set(status="cached")
    if not entry.document["changed"]:
        stage.set(status="skipped")
    stage.note(*entry.document["notes"])
    details: Mapping[str, Any] = entry.document["details"]
    stage.detail(**details)
    return model, details


def measure(model: bytes, reference: Reference, outputs: Sequence[Tensor], stage: Stage) -> None:
    """Write size, parameters and parity with the original into a stage's record."""
    runner = graph.Runner(model)
    pairs = [
        (original, runner.run(feed))
        for feed, original in zip(reference.feeds, reference.original, strict=True)
    ]
    stage.set(
        bytes=len(model),
        parameters=graph.stats(_parsed(model)).parameters,
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
    opset = request.target.opset
    example = reference.feeds[0]

    def compute() -> PassResult[Any]:
        result = _to_onnx(found, inputs, example, request)
        notes = graph.check_dynamic_axes(result.model, inputs, example, found.run)
        return replace(result, notes=(*result.notes, *notes))

    with ledger.stage("export") as stage:
        parts = {
            "source": found.digest,
            "inputs": [tensor.to_json() for tensor in inputs],
            "outputs": list(request.output_kinds),
            "opset": opset,
            "example": {name: list(array.shape) for name, array in example.items()},
        }
        model, _ = _through_cache("export", parts, stage, cache, compute)
        exported = _graph(model, found, request, reference.labelled, stage)
        measure(model, reference, exported.outputs, stage)
    return exported


def _to_onnx(
    found: Source, inputs: tuple[Tensor, ...], example: Mapping[str, np.ndarray], request: Request
) -> PassResult[Any]:
    names = tuple(request.output_kinds) or found.output_names
    opset = request.target.opset
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
        parts = {"model": _digest(before.model)}
        example = reference.feeds[0]
        model, _ = _through_cache(
            "simplify", parts, stage, cache, lambda: graph.simplify(_parsed(before.model), example)
        )
        measure(model, reference, before.outputs, stage)
    return replace(before, model=model)


def apply(
    step: chain.Step,
    before: Graph,
    samples: SampleSets,
    reference: Reference,
    cache: Cache,
    ledger: Ledger,
) -> Graph:
    """Apply one pass of the chain."""
    known = chain.PASSES[step.name]
    calibration = samples.calibration if known.samples else None
    with ledger.stage(step.name) as stage:
        parts = {
            "model": _digest(before.model),
            "options": dict(step.options),
            "samples": samples.lint.digests.get("calibration") if known.samples else None,
        }
        model, details = _through_cache(
            step.name, parts, stage, cache,
            lambda: known.apply(_parsed(before.model), calibration, step.options, ledger.progress),
        )  # fmt: skip
        measure(model, reference, before.outputs, stage)
    return replace(before, model=model, integer_only=bool(details.get("integer_only", False)))


def build_engine(before: Graph, request: Request, ledger: Ledger) -> Graph:
    """From ONNX to what the target's engine runs."""
    with ledger.stage("engine") as stage:
        builder = engine.ENGINES[request.target.engine]
        model = builder.build(before.model)
        stage.note(f"{request.target.engine} runs the ONNX itself")
        stage.set(bytes=len(model))
    return replace(before, model=model)


def _digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()
