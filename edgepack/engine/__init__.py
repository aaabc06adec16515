"""Engines: builders of the artefact that runs on the device, from an ONNX model.

Each engine is one module and one line in the table. A module has two functions:

    build(model, target, profiles) -> Built    the artefact, checked on this host
    requirements() -> str                      the device's packages, as requirements.txt
"""

from __future__ import annotations

from types import ModuleType

from edgepack.engine import onnxruntime, onnxruntime_cuda, tensorrt
from edgepack.engine.built import Built
from edgepack.spec.target import Target

ENGINES: dict[str, ModuleType] = {
    "onnxruntime": onnxruntime,
    "onnxruntime-cuda": onnxruntime_cuda,
    "tensorrt": tensorrt,
}


def requirements(target: Target) -> str:
    """Return requirements.txt of a target's device, for its engine and the fallback engine."""
    # A target with the engine tensorrt and the fallback onnxruntime-cuda needs numpy for both and
    # onnxruntime-gpu for the second. Each line is listed once.
    names = dict.fromkeys(filter(None, (target.engine, target.fallback)))
    if "onnxruntime-cuda" in names:
        # onnxruntime-gpu has the CPU provider too, and the two packages overwrite each other's
        # files.
        names.pop("onnxruntime", None)
    lines: dict[str, None] = {}
    for name in names:
        lines |= dict.fromkeys(ENGINES[name].requirements().splitlines())
    return "".join(f"{line}\n" for line in lines)


__all__ = ["ENGINES", "Built", "requirements"]
