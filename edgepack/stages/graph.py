"""Stages `export`, `simplify`, each pass of the chain, and `engine`: the graph that will ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepack import chain, engine, graph
from edgepack.cache import Cache
from edgepack.errors import SpecError
from edgepack.ledger import Ledger, Stage
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


def _through_cache(
    name: str, parts: Mapping[str, Any], stage: Stage, cache: Cache,
    compute: Callable[[], tuple[bytes, dict[str, Any]]],
) -> tuple[bytes, Mapping[str, Any]]:  # fmt: skip
    """A stage's model and document: from the cache, else computed and kept there."""
    key = cache.key(name, parts)
    entry = cache.get(name, key)
    if entry is None:
        model, document = compute()
        entry = cache.put(name, key, {"model.onnx": model}, document)
    else:
        model = (entry.folder / "model.onnx").read_bytes()
        stage.set(status="cached")
    stage.note(*entry.document["notes"])
    stage.detail(**entry.document.get("details", {}))
    return model, entry.document


def measure(model: bytes, reference: Reference, outputs: Sequence[Tensor], stage: Stage) -> None:
    """Write size, parameters and parity with the original into a stage's record."""
    runner = graph.Runner(model)
    pairs = [
        (original, runner.run(feed))
        for feed, original in zip(reference.feeds, reference.original, strict=True)
    ]
    stage.set(
        bytes=len(model),
        parameters=graph.stats(model).parameters,
        parity=compare(outputs, pairs),
    )


def export(
    request: Request, found: Source, inputs: tuple[Tensor, ...], reference: Reference,
    cache: Cache, ledger: Ledger,
) -> Graph:  # fmt: skip
    """Torch to ONNX; every dynamic axis is run at a second size."""
    opset = request.target.opset

    def compute() -> tuple[bytes, dict[str, Any]]:
        model, notes = _to_onnx(found, inputs, reference.feeds[0], opset, request)
        notes += list(graph.check_dynamic_axes(model, inputs, reference.feeds[0], found.run))
        return model.SerializeToString(deterministic=True), {"notes": notes}

    with ledger.stage("export") as stage:
        parts = {
            "source": found.digest,
            "inputs": [tensor.to_json() for tensor in inputs],
            "outputs": list(request.output_kinds),
            "opset": opset,
            "feed": {name: list(array.shape) for name, array in reference.feeds[0].items()},
        }
        model, _ = _through_cache("export", parts, stage, cache, compute)
        exported = _graph(model, found, request, reference.labelled, stage)
        measure(model, reference, exported.outputs, stage)
    return exported


def _to_onnx(
    found: Source, inputs: tuple[Tensor, ...], example: Mapping[str, np.ndarray], opset: int,
    request: Request,
) -> tuple[Any, list[str]]:  # fmt: skip
    names = tuple(request.output_kinds) or found.output_names
    if found.onnx is not None:
        return graph.load_onnx(found.onnx, opset), [f"taken as it is from {found.path.name}"]
    if found.program is not None:
        return graph.export_program(found.program, inputs, example, opset, names), []
    return graph.export_module(found.module, inputs, example, opset, names), []


def _graph(model: bytes, found: Source, request: Request, labelled: bool, stage: Stage) -> Graph:
    """Inputs and outputs of a graph; an output's kind is stated, known, or inferred aloud."""
    inputs, outputs = graph.signature(model)
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

    def compute() -> tuple[bytes, dict[str, Any]]:
        import onnx

        result = graph.simplify(onnx.load_model_from_string(before.model))
        return result.model.SerializeToString(deterministic=True), {
            "notes": list(result.notes),
            "details": dict(result.details),
        }

    with ledger.stage("simplify") as stage:
        parts = {"model": _digest(before.model)}
        model, _ = _through_cache("simplify", parts, stage, cache, compute)
        measure(model, reference, before.outputs, stage)
    return replace(before, model=model)


def apply(
    step: chain.Step, before: Graph, samples: SampleSets, reference: Reference,
    cache: Cache, ledger: Ledger,
) -> Graph:  # fmt: skip
    """Apply one pass of the chain."""
    known = chain.PASSES[step.name]
    calibration = samples.calibration if known.samples else None

    def compute() -> tuple[bytes, dict[str, Any]]:
        import onnx

        model = onnx.load_model_from_string(before.model)
        result = known.apply(model, calibration, step.options, ledger.progress)
        return result.model.SerializeToString(deterministic=True), {
            "notes": list(result.notes),
            "details": json.loads(json.dumps(dict(result.details))),
            "changed": result.changed,
        }

    with ledger.stage(step.name) as stage:
        parts = {
            "model": _digest(before.model),
            "options": dict(step.options),
            "samples": samples.lint.digests.get("calibration") if known.samples else None,
        }
        model, document = _through_cache(step.name, parts, stage, cache, compute)
        if not document["changed"]:
            stage.set(status="skipped")
        measure(model, reference, before.outputs, stage)
    return replace(
        before, model=model, integer_only=bool(document["details"].get("integer_only", False))
    )


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
