"""Engines: builders of the artefact that runs on the device, from an ONNX model.

Each engine is one module that implements `protocol.Engine` and one line in the table. Another
distribution adds one in the group `edgepack.engines` of its entry points (see `edgepack.plugins`);
the name of the entry is the `engine.name` of a target profile.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import cast

from edgepack import plugins
from edgepack.engine import onnxruntime, onnxruntime_cuda, openvino, tensorrt
from edgepack.engine.built import Built
from edgepack.engine.protocol import Engine
from edgepack.plugins import Plugin, is_callable
from edgepack.runtime.bundle import engines
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

ENGINES: dict[str, Engine] = {
    engines.ONNXRUNTIME: onnxruntime,
    engines.CUDA: onnxruntime_cuda,
    engines.TENSORRT: tensorrt,
}


def find_plugin(name: str) -> Plugin | None:
    """Return the plug-in that defines an engine; None for one of edgepack's own, or none."""
    return plugins.list_plugins(plugins.ENGINES, tuple(ENGINES)).get(name)


def find_engine(name: str) -> Engine:
    """Return an engine by name. Raises KeyError if there is none, PluginError if it is broken."""
    plugin = find_plugin(name)
    if plugin is None:
        return ENGINES[name]
    return _load(plugin)


def find_runtime(target: Target) -> str:
    """Return the loader's engine that runs the artefact of a target."""
    return find_engine(target.engine).RUNTIME


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Build the artefact of a target. Raises EngineError, and PluginError for a plug-in's fault."""
    builder = find_engine(target.engine)
    with plugins.attribute_faults(find_plugin(target.engine)):
        return builder.build(model, target, profiles)


def list_alternatives(target: Target) -> tuple[Variant, ...]:
    """Return the variants of a target's further engines that this host can run.

    OpenVINO in float32, and in bfloat16 on a CPU that has it; none if the package is missing.
    """
    if engines.OPENVINO in target.alternatives:
        return openvino.list_variants()
    return ()


def requirements(target: Target, variants: Iterable[Variant] = ()) -> str:
    """Return requirements.txt of a target's device.

    Args:
        target: the profile, with its engine and the fallback engine.
        variants: of the bundle, which may run in a further engine.
    """
    # A target with the engine tensorrt and the fallback onnxruntime-cuda needs numpy for both and
    # onnxruntime-gpu for the second. Each line is listed once.
    names = dict.fromkeys(filter(None, (target.engine, target.fallback)))
    if find_runtime(target) == engines.CUDA or target.fallback == engines.CUDA:
        # onnxruntime-gpu has the CPU provider too, and the two packages overwrite each other's
        # files.
        names.pop(engines.ONNXRUNTIME, None)
    lines: dict[str, None] = {}
    for name in names:
        lines |= dict.fromkeys(find_engine(name).requirements().splitlines())
    if any(variant.engine == engines.OPENVINO for variant in variants):
        lines |= dict.fromkeys(openvino.requirements().splitlines())
    return "".join(f"{line}\n" for line in lines)


@cache
def _load(plugin: Plugin) -> Engine:
    members = {
        "RUNTIME": lambda runtime: runtime in engines.ENGINES,
        "build": is_callable,
        "requirements": is_callable,
    }
    return cast("Engine", plugin.load(members))


__all__ = [
    "ENGINES",
    "Built",
    "Engine",
    "build",
    "find_engine",
    "find_plugin",
    "find_runtime",
    "list_alternatives",
    "requirements",
]
