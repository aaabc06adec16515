"""`finish`: build the engine that is bound to this GPU, prove it, and seal it beside the bundle.

A TensorRT engine runs on the GPU and the version that it was built on and nowhere else, so it is
built here, from the ONNX in the bundle. It is sealed once its answers on the reference samples
hold the bundle's own gates, and not before. Done twice it does nothing the second time; killed, it
leaves the engine that was there, or none.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple, Union

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.engines import Variant
from ..bundle.index import Index, check_all, check_file, read_index
from ..bundle.seal import PLAN, TIMING, Key, Sealed, place_of, write
from ..bundle.whole import place, sweep
from ..device import machine
from ..device.here import Here, find_sealed
from ..device.variants import Choice, unmet
from ..errors import DeviceError, GateError
from ..parity.gates import describe_gate

Say = Callable[[str], None]


def finish(path: str, say: Say, *, force: bool = False) -> Dict[str, Any]:
    """Build, prove and seal the engine of a bundle, unless it is there.

    Args:
        path: the bundle; the engine goes to `seal.place_of` it.
        say: told of every step, and every few seconds of a long one.
        force: build also where a fitting engine is there, with its timing cache.

    Returns what was done as JSON values. Raises GateError where the engine's answers miss a gate,
    BundleError where the bundle is not intact, DeviceError where no engine can be built here.
    """
    with Archive(path) as archive:
        index = read_index(archive)
        check_all(archive, index)
        require_checksum(archive)
        here = Here(index)
        machine.require(index.device, here)
        variant = next((variant for variant in index.variants if variant.unfinished), None)
        if variant is None:
            say("nothing to finish: this bundle builds no engine on the device")
            return {"built": False, "engine": None}
        fault = unmet(variant, index, here)
        if fault is not None:
            raise fault
        key, engine = Key.of(index, variant, here), place_of(path)
        before = find_sealed(path, index)
        if not force and _whole(before, key, say):
            sweep(engine)
            say("finished before: {} is for this bundle, GPU and TensorRT".format(engine))
            return {"built": False, "engine": engine, "key": asdict(key)}
        with place(engine) as publish:
            started = time.perf_counter()
            plan, timing_cache = _build(archive, index, here, _timing_cache(before, key), say)
            built = time.perf_counter()
            proof = _prove(archive, index, variant, here, plan)
            for question, gate in _gates(proof):
                say("{}: {}".format(question, describe_gate(gate)))
            if not proof["passed"]:
                raise _missed(proof)
            seconds = {"build": built - started, "verify": time.perf_counter() - built}
            told = {name: here[name] for name in ("cuda_driver", "l4t", "gpu_memory_bytes")}
            told["seconds"] = seconds
            publish(lambda file: write(file, key, plan, timing_cache, told))
    say("sealed: {} ({:,} bytes)".format(engine, len(plan)))
    return {
        "built": True,
        "engine": engine,
        "key": asdict(key),
        "bytes": len(plan),
        "seconds": seconds,
        "quality": proof["quality"],
        "fidelity": proof["fidelity"],
    }


def _whole(before: Union[Sealed, DeviceError, None], key: Key, say: Say) -> bool:
    """Whether the engine that is there is for this key, to the last byte."""
    if isinstance(before, DeviceError):
        say("{}: {}".format(before.what, before.why))
        return False
    if before is None or before.key != key:
        return False
    try:
        before.read(PLAN)
    except DeviceError as error:
        say("{}: {}".format(error.what, error.why))
        return False
    return True


def _timing_cache(before: Union[Sealed, DeviceError, None], key: Key) -> bytes:
    """What an earlier build measured on this GPU with this TensorRT, whatever the bundle."""
    if not isinstance(before, Sealed):
        return b""
    same = {**asdict(before.key), "bundle": key.bundle, "variant": key.variant}
    if same != asdict(key):
        return b""
    try:
        return before.read(TIMING)
    except DeviceError:
        # It only saves time, and this build makes a new one.
        return b""


def _build(
    archive: Archive, index: Index, here: Here, timing_cache: bytes, say: Say
) -> Tuple[bytes, bytes]:
    from ..session.tensorrt_build import Options, build
    from ..session.tensorrt_session import import_tensorrt

    say(
        "building the engine for {} with TensorRT {}: on a small board this takes ten "
        "minutes".format(here["gpu"], here["tensorrt"])
    )
    options = index.engine_options
    return build(
        import_tensorrt(),
        check_file(archive, index, index.model),
        Options(options.workspace_mb << 20, options.profiles, options.dla_core),
        timing_cache,
        lambda seconds: say("  still building, {:.0f} s".format(seconds)),
    )


def _prove(
    archive: Archive, index: Index, variant: Variant, here: Here, plan: bytes
) -> Dict[str, Any]:
    """Both questions, asked of the engine on the reference samples."""
    from ..model import Model
    from ..session.tensorrt_session import TensorrtSession
    from .verify import on_samples

    session = TensorrtSession(plan, index.inputs, index.outputs, index.engine_options.dla_core)
    return on_samples(archive, Model(index, session, Choice(variant, None, False, (), here)))


def _gates(proof: Mapping[str, Any]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    for question in ("fidelity", "quality"):
        if proof[question] is not None:
            for gate in proof[question]["gates"]:
                yield question, gate


def _missed(proof: Mapping[str, Any]) -> GateError:
    return GateError(
        "engine-gate-missed",
        "the engine was built, and its answers are not good enough; it was not sealed",
        why="\n".join(
            "{}: {}".format(question, describe_gate(gate))
            for question, gate in _gates(proof)
            if not gate["passed"]
        ),
        hint="the bundle's other variants are not touched by this: python3 BUNDLE info",
    )
