"""`--dry-run`: the stages of a build and its needs, without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepack import data, files, source
from edgepack.pipeline import list_stages
from edgepack.request import Request
from edgepack.stages import list_missing_samples

# Resident memory of a process that has imported torch, onnx and onnxruntime, without a model.
BASE_BYTES = 600 << 20
# The trained model, its exported graph, the simplified one and one more while it is written.
COPIES = 5
# The model in the bundle, the draft of the bundle, and the graphs in the cache.
DISK_COPIES = 4


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    # A Hugging Face folder: its configuration is small beside the weights.
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def plan(request: Request) -> dict[str, Any]:
    """Return the stages that would run, and an estimate of memory and disk in bytes.

    Raises SourceError if the model is missing or of unknown kind, DataError if samples are missing,
    HostError or SpecError if the bundle cannot be written.
    """
    files.check_output(request.output, request.list_inputs())
    specs = {
        "calibration": request.calibration,
        "evaluation": request.evaluation,
        "training": request.training,
    }
    # Only their existence is checked: reading samples may run the user's code.
    for spec in filter(None, specs.values()):
        data.check_there(spec)
    if request.random:
        specs["calibration"] = "random numbers"
    kind = source.recognise(request.model)
    size = _size(request.model)
    chain = [
        {"stage": step.name, "options": dict(step.options), "known": True} for step in request.chain
    ]
    return {
        "model": str(request.model),
        "kind": kind,
        "target": request.target.name,
        "output": str(request.output),
        **{role: spec or None for role, spec in specs.items()},
        "missing": list_missing_samples(request),
        "gates": dict(request.quality),
        "stages": list_stages(request),
        "chain": chain,
        "estimate": {
            "memory_bytes": BASE_BYTES + COPIES * size,
            "disk_bytes": DISK_COPIES * size,
        },
    }


def describe(document: dict[str, Any]) -> str:
    """Format a plan as text."""
    estimate = document["estimate"]
    training = []
    if document["training"] or "training" in document["missing"]:
        training = [f"training     {document['training'] or _absent(document, 'training')}"]
    return "\n".join(
        (
            f"{document['model']} ({document['kind']}) for {document['target']}",
            f"would write  {document['output']}",
            f"stages       {' -> '.join(document['stages'])}",
            f"calibration  {document['calibration'] or _absent(document, 'calibration')}",
            f"evaluation   {document['evaluation'] or 'the calibration samples'}",
            *training,
            "gates        " + ", ".join(f"{k} {v:g}" for k, v in document["gates"].items()),
            f"estimate     {estimate['memory_bytes'] / 1e9:.1f} GB of memory, "
            f"{estimate['disk_bytes'] / 1e6:.0f} MB of disk",
        )
    )


def _absent(document: dict[str, Any], role: str) -> str:
    if role in document["missing"]:
        return "none, but the chain needs them"
    return "none"
