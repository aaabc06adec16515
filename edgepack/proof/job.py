"""What is to be proved: the draft of the bundle, its gates, and where it is to stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import bundle, engine
from edgepack.cache import tool_versions
from edgepack.errors import SpecError
from edgepack.request import MINIMA, Request
from edgepack.runtime.engines import ONNXRUNTIME, EngineOptions, Variant
from edgepack.runtime.metrics import TOP
from edgepack.source.model import Source
from edgepack.spec.target import Target
from edgepack.stages import Graph, Reference, SampleSets, foreign


@dataclass(frozen=True)
class Job:
    """Everything that the proof is about."""

    request: Request
    source: Source
    samples: SampleSets
    reference: Reference
    original: Graph
    graph: Graph
    wheels: Mapping[str, Path]

    @property
    def stands_in(self) -> tuple[str, ...]:
        """Options of the loader where this host stands in for another processor, or a GPU.

        What needs a GPU is judged by its ONNX on the CPU, so that a build needs none; that a GPU
        computes the same is for `verify` to prove there.
        """
        target = self.request.target
        return ("--stand-in",) if foreign(target) or target.engine != ONNXRUNTIME else ()


def rejected(output: Path) -> Path:
    """Where a bundle is kept whose gates were missed."""
    return output.with_name(f"{output.stem}.rejected{output.suffix}")


def draft(job: Job) -> bundle.Contents:
    """What goes into the bundle, before any answer of its own."""
    target = job.request.target
    bounds = gates(job)
    return bundle.Contents(
        name=job.request.name,
        target=target.name,
        device={
            "arch": target.arch,
            "isa": list(target.isa),
            "python": target.python,
            **({"jetpack": target.jetpack} if target.jetpack else {}),
        },
        inputs=job.graph.inputs,
        outputs=job.graph.outputs,
        model=job.graph.model,
        variants=variants(target),
        engine_options=EngineOptions(target.workspace_mb, target.dla_core, job.graph.profiles),
        reference=[
            np.stack([feed[tensor.name] for feed in job.reference.feeds])
            for tensor in job.graph.inputs
        ],
        original=[np.stack(column) for column in zip(*job.reference.original, strict=True)],
        built=None,
        gates=bounds,
        metric=metric(job),
        provenance={
            "source": {
                "kind": job.source.kind,
                "sha256": job.source.digest,
                "trusted_pickle": job.source.trusted_pickle,
            },
            "samples": dict(job.samples.lint.digests),
            "proven": job.samples.proven,
            "chain": [
                {"pass": step.name, "options": dict(step.options)} for step in job.request.chain
            ],
        },
        tools=tool_versions(),
        requirements=engine.requirements(target),
    )


def variants(target: Target) -> tuple[Variant, ...]:
    """The profile's engine, and after it what it may fall back to; each named like its engine."""
    needs = {
        "compute_capability": target.compute_capability,
        "engine_version": target.engine_version,
    }
    found = [Variant(target.engine, target.engine, {k: v for k, v in needs.items() if v})]
    if target.fallback:
        oldest = {"engine_version": engine.onnxruntime.OLDEST}
        found.append(Variant(target.fallback, target.fallback, oldest))
    return tuple(found)


def metric(job: Job) -> str:
    """The task metric: as asked for, else top-1 where there are labels and scores.

    Raises SpecError where what was asked for cannot be measured.
    """
    scores = any(tensor.kind == "scores" for tensor in job.graph.outputs)
    on_metric = sorted(job.request.stated & {"max_drop", "metric_ratio"})
    asked = job.request.metric or next(iter(on_metric), "")
    if not scores and "agreement" in job.request.stated:
        asked = asked or "agreement"
    if asked and not (scores and (job.reference.labelled or asked == "agreement")):
        raise SpecError(
            "metric-needs-labels",
            f"{asked} was asked for, and it cannot be measured",
            why="the evaluation samples have no labels" if scores else "no output is class scores",
            hint="store the labels under `labels` in the evaluation .npz"
            if scores
            else 'a manifest says which output is: [[outputs]] name = "...", kind = "scores"',
        )
    if not (scores and job.reference.labelled):
        return ""
    return job.request.metric or next(iter(TOP))


def gates(job: Job) -> dict[str, dict[str, Any]]:
    """The gates that hold: on the metric where there is one, else on agreement."""
    quality = dict(job.request.quality)
    unused = ("agreement",) if metric(job) else ("metric_ratio", "max_drop")
    for gate in unused:
        if gate not in job.request.stated:
            quality.pop(gate, None)
    bounds = dict(job.request.target.fidelity)
    exact = bool(bounds.pop("bit_exact", False)) and job.graph.integer_only
    found = {"quality": quality, "fidelity": {"bit_exact": True} if exact else bounds}
    for question, held in found.items():
        if not held:
            raise SpecError(
                "gates-empty",
                f"no gate holds the {question} of this model",
                why="the profile's only gate is bit_exact, and the model keeps float operators"
                if question == "fidelity"
                else "neither the profile nor the manifest states one that applies",
                hint=f"state snr_db under [gates.{question}]",
            )
    return found


def lowered(request: Request) -> list[str]:
    """A sentence for every gate that the manifest holds lower than the profile does."""
    told = []
    for gate in sorted(request.stated & set(MINIMA) & set(request.target.quality)):
        bound, usual = request.quality[gate], request.target.quality[gate]
        if bound < usual:
            told.append(f"the gate {gate} was lowered to {bound:g}; the profile holds {usual:g}")
    return told
