"""What is to be proved: the draft of the bundle, its gates, and where it is to stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import bundle, engine
from edgepack.cache import tool_versions
from edgepack.request import MINIMA, Request
from edgepack.runtime.bundle.engines import EngineOptions, Variant
from edgepack.source.model import Source
from edgepack.spec.target import Target
from edgepack.stages import Graph, Reference, SampleSets, stands_in
from edgepack.stages import gates as quality_gates
from edgepack.stages.parts import parts_of


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
        """Options of the loader where this host stands in for another processor, or a GPU."""
        return ("--stand-in",) if stands_in(self.request.target) else ()


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
        sizes=job.reference.sizes,
        gates=bounds,
        metric=metric(job),
        parts=parts_of(job.reference, tuple(job.graph.outputs)),
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
            **({"returned": list(job.graph.returned)} if job.graph.returned else {}),
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
    """The task metric; "" for none."""
    return quality_gates.metric(job.request, job.graph.outputs, job.reference.labels)


def gates(job: Job) -> dict[str, dict[str, Any]]:
    """The gates that hold quality and fidelity. Raises SpecError where one has none."""
    bounds = dict(job.request.target.fidelity)
    exact = bool(bounds.pop("bit_exact", False)) and job.graph.integer_only
    return {
        "quality": quality_gates.quality(job.request, job.graph.outputs, job.reference.labels),
        "fidelity": quality_gates.held(
            {"bit_exact": True} if exact else bounds,
            "fidelity",
            "the profile's only gate is bit_exact, and the model keeps float operators",
        ),
    }


def lowered(request: Request) -> list[str]:
    """A sentence for every gate that the manifest holds lower than the profile does."""
    told = []
    for gate in sorted(request.stated & set(MINIMA) & set(request.target.quality)):
        bound, usual = request.quality[gate], request.target.quality[gate]
        if bound < usual:
            told.append(f"the gate {gate} was lowered to {bound:g}; the profile holds {usual:g}")
    return told
