"""`--dry-run`: the stages of a build and its needs, without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from edgepack import data, files, source
from edgepack.forecast import measured_needs
from edgepack.passes.quantize import QuantizeOptions
from edgepack.pipeline import list_stages
from edgepack.proof import require_emulators
from edgepack.report.figures import format_seconds
from edgepack.request import Request
from edgepack.source.live import LiveModel
from edgepack.stages import check_split, list_missing_samples

# Resident memory of a process that has imported onnx and onnxruntime, and torch if the model is not
# an ONNX file; without a model.
ONNX_BYTES, TORCH_BYTES = 130 << 20, 600 << 20
# The trained model, its exported graph, the simplified one and one more while it is written.
COPIES = 5
# The model in the bundle, the draft of the bundle, and the graphs in the cache.
DISK_COPIES = 4


class Estimate(TypedDict):
    """Needs of the build, in bytes and seconds.

    Memory and time are those of an earlier build of the model if `measured` is true. Before the
    first one, memory is what the libraries and the model take at least, with its quantization if
    the chain has one, and time is None.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    measured: bool


class Plan(TypedDict):
    """Answer of `--dry-run`, as JSON values; samples are None where there are none."""

    model: str
    kind: str
    target: str
    output: str
    calibration: str | None
    evaluation: str | None
    # Share of a single source that is for evaluation; None without one, or if it has parts.
    split: float | None
    training: str | None
    missing: list[str]
    # True if inputs are generated in place of samples.
    generated: bool
    gates: dict[str, float]
    stages: list[str]
    # stage, options, and known: always true, since an unknown pass is refused.
    chain: list[dict[str, object]]
    estimate: Estimate


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    # A Hugging Face folder: its configuration is small beside the weights, which may be links.
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _list_gates(request: Request) -> dict[str, float]:
    """Return the gates by name; those of a metric as "f1.max_drop"."""
    gates = dict(request.quality)
    for metric, bounds in request.metric_gates.items():
        for bound, value in bounds.items():
            gates[f"{metric}.{bound}"] = value
    return gates


def plan(request: Request) -> Plan:
    """Return the stages that would run, and an estimate of memory and disk in bytes.

    Raises SourceError if the model is missing or of unknown kind, DataError if samples are missing,
    HostError or SpecError if the bundle cannot be written, or its target cannot be emulated here.
    """
    files.check_output(request.output, request.list_inputs())
    require_emulators(request)
    # Only their existence is checked: reading samples may run the user's code.
    for spec in (request.calibration, request.evaluation, request.training):
        if spec:
            data.check_there(spec)
    check_split(request)
    calibration = str(request.calibration)
    if request.random:
        calibration = "random numbers"
    if isinstance(request.model, LiveModel):
        raise TypeError("a plan describes a build from the command line")
    kind = source.recognise(request.model)
    size = _size(request.model)
    chain: list[dict[str, object]] = []
    for step in request.chain:
        chain.append({"stage": step.name, "options": dict(step.options), "known": True})
    return {
        "model": str(request.model),
        "kind": kind,
        "target": request.target.name,
        "output": str(request.output),
        "calibration": calibration or None,
        "evaluation": str(request.evaluation) or None,
        "split": request.split.share if request.split else None,
        "training": str(request.training) or None,
        "missing": list_missing_samples(request),
        "generated": request.generates_inputs,
        "gates": _list_gates(request),
        "stages": list_stages(request),
        "chain": chain,
        "estimate": _estimate(request, kind, size),
    }


def _estimate(request: Request, kind: str, size: int) -> Estimate:
    disk = DISK_COPIES * size
    needs = measured_needs(request)
    if needs is not None:
        seconds, memory = needs
        return {
            "memory_bytes": memory, "disk_bytes": disk, "seconds": seconds, "measured": True
        }  # fmt: skip
    base = ONNX_BYTES if kind == "onnx" else TORCH_BYTES
    memory = base + max(COPIES * size, _estimate_quantize(request, kind, size))
    return {"memory_bytes": memory, "disk_bytes": disk, "seconds": None, "measured": False}


def _estimate_quantize(request: Request, kind: str, size: int) -> int:
    """Estimate the memory that the quantizations of the chain take, in bytes; 0 without one."""
    needed = 0
    for step in request.chain:
        options: object = step.read()
        if isinstance(options, QuantizeOptions) and isinstance(request.model, Path):
            # The onnx package, which reads the layers of an ONNX file, takes a while to import.
            from edgepack.passes.quantize.memory import estimate_memory

            needed = max(needed, estimate_memory(request.model, kind == "onnx", size, options))
    return needed


# cnn.onnx (onnx) for cpu-fbgemm
# would write  cnn-cpu-fbgemm.edgepack
# stages       source -> samples -> original -> ...
def describe(document: Plan) -> str:
    """Format a plan as text."""
    gates = []
    for name, bound in document["gates"].items():
        gates.append(f"{name} {bound:g}")
    evaluation = document["evaluation"] or "the calibration samples"
    if document["split"] is not None:
        evaluation += f" ({100 * document['split']:g} % of it)"
    if document["generated"]:
        evaluation = "generated inputs, which prove nothing about real ones"
    training = []
    if document["training"] or "training" in document["missing"]:
        training = [f"training     {document['training'] or _absent(document, 'training')}"]
    return "\n".join(
        (
            f"{document['model']} ({document['kind']}) for {document['target']}",
            f"would write  {document['output']}",
            f"stages       {' -> '.join(document['stages'])}",
            f"calibration  {document['calibration'] or _absent(document, 'calibration')}",
            f"evaluation   {evaluation}",
            *training,
            f"gates        {', '.join(gates)}",
            f"estimate     {_describe_estimate(document['estimate'])}",
        )
    )


def _describe_estimate(estimate: Estimate) -> str:
    """Format an estimate: "1.2 GB of memory, 75 MB of disk, 85 s, as its last build measured"."""
    memory = f"{estimate['memory_bytes'] / 1e9:.1f} GB of memory"
    disk = f"{estimate['disk_bytes'] / 1e6:.0f} MB of disk"
    if estimate["seconds"] is None:
        return f"at least {memory}, {disk}; the first build measures memory and time"
    return f"{memory}, {disk}, {format_seconds(estimate['seconds'])}, as its last build measured"


def _absent(document: Plan, role: str) -> str:
    if role in document["missing"]:
        return "none, but the chain needs them"
    return "none"
