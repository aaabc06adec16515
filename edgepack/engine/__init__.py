"""Engines: from ONNX to what runs on the device. One module each, one line in the table.

A module has two functions:

    build(model, target, profiles) -> Built    what ships, and what was proved of it on this host
    requirements() -> str                      what the device needs of it, as requirements.txt
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
    """requirements.txt of a target's device: of its engine, and of the one to fall back to."""
    names = dict.fromkeys(filter(None, (target.engine, target.fallback)))
    if "onnxruntime-cuda" in names:
        # It has the CPU provider as well, and the two packages overwrite each other's files.
        names.pop("onnxruntime", None)
    lines = [line for name in names for line in ENGINES[name].requirements().splitlines()]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


__all__ = ["ENGINES", "Built", "requirements"]
