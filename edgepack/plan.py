"""`--dry-run`: what a build would do, and what it would need, without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepack import chain, data, files, source
from edgepack.request import Request
from edgepack.stages import emulates, foreign, missing

# Resident memory of a process with torch, onnx and onnxruntime imported, before any model.
BASE_BYTES = 600 << 20
# The trained model, its exported graph, the simplified one and one more while it is written.
COPIES = 5
# The model in the bundle, its draft beside it, and the graphs that the cache keeps.
DISK_COPIES = 4


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def plan(request: Request) -> dict[str, Any]:
    """The stages that would run and an estimate of memory and disk, in bytes.

    Raises SourceError where the model is missing or of no known kind, DataError where samples
    are not there, HostError or SpecError where the bundle cannot be written at its place.
    """
    files.check_place(request.output, request.reads())
    given = {
        "calibration": request.calibration,
        "evaluation": request.evaluation,
        "training": request.training,
    }
    for spec in filter(None, given.values()):
        data.check_there(spec)
    kind = source.recognise(request.model)
    size = _size(request.model)
    passes = [
        {"stage": step.name, "options": dict(step.options), "known": step.name in chain.PASSES}
        for step in request.chain
    ]
    return {
        "model": str(request.model),
        "kind": kind,
        "target": request.target.name,
        "output": str(request.output),
        **{role: spec or None for role, spec in given.items()},
        **({"calibration": "random numbers"} if request.random else {}),
        "missing": missing(request),
        "gates": dict(request.quality),
        "stages": [
            *(["wheels"] if request.wheels else []),
            "source",
            "samples",
            "original",
            "export",
            "simplify",
            *(step["stage"] for step in passes),
            "engine",
            "bundle",
            "verify",
            *(["emulate"] if request.emulate and emulates(request.target) else []),
            *([] if foreign(request.target) or request.latency == "none" else ["latency"]),
        ],
        "chain": passes,
        "estimate": {
            "memory_bytes": BASE_BYTES + COPIES * size,
            "disk_bytes": DISK_COPIES * size,
        },
    }


def describe(planned: dict[str, Any]) -> str:
    """The plan in words."""
    estimate = planned["estimate"]
    return "\n".join(
        (
            f"{planned['model']} ({planned['kind']}) for {planned['target']}",
            f"would write  {planned['output']}",
            f"stages       {' -> '.join(planned['stages'])}",
            f"calibration  {planned['calibration'] or _absent(planned, 'calibration')}",
            f"evaluation   {planned['evaluation'] or 'the calibration samples'}",
            *(
                [f"training     {planned['training'] or _absent(planned, 'training')}"]
                if planned["training"] or "training" in planned["missing"]
                else ()
            ),
            "gates        " + ", ".join(f"{k} {v:g}" for k, v in planned["gates"].items()),
            f"estimate     {estimate['memory_bytes'] / 1e9:.1f} GB of memory, "
            f"{estimate['disk_bytes'] / 1e6:.0f} MB of disk",
        )
    )


def _absent(planned: dict[str, Any], role: str) -> str:
    return "none given" + (", and the chain needs them" if role in planned["missing"] else "")
