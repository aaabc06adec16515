"""`finish`: build the engine for this GPU, verify it, and seal it beside the bundle.

A TensorRT engine runs only on the GPU and with the version that it was built with, so it is built
on the device, from the ONNX in the bundle. It is sealed only after its answers on the reference
samples pass the bundle's gates. A second `finish` does nothing; a killed one leaves the previous
engine, or none.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Dict, List, Tuple, Union, cast

from ..bundle.archive import Archive
from ..bundle.atomic import lock_part, sweep
from ..bundle.checksum import require_checksum
from ..bundle.engines import Variant
from ..bundle.index import Index, check_all, check_file, read_index
from ..bundle.seal import PLAN, TIMING, Key, Sealed, engine_path, write
from ..device import machine
from ..device.device_info import device_info, find_sealed
from ..device.variants import Choice, check_requirements
from ..errors import DeviceError, GateError
from ..parity.verdict import decide, list_doubts
from ..streams import print_status
from .proof import describe_proof, list_missed, list_questions

if TYPE_CHECKING:
    from ..documents import Answers, DeviceFacts, FinishDocument


def finish(path: str, *, force: bool = False) -> FinishDocument:
    """Build, verify and seal the engine of a bundle, unless a fitting one exists.

    Args:
        path: the bundle, one of whose variants is unfinished; `seal.engine_path` names the
            engine's file.
        force: rebuild a fitting engine, with the help of its timing cache.

    Progress is printed on standard error, every few seconds during a long build. Returns a report
    of JSON values. Raises GateError if the engine's answers miss a gate,
    BundleError if the bundle is not intact, DeviceError if no engine can be built here.
    """
    with Archive(path) as archive:
        index = read_index(archive)
        check_all(archive, index)
        require_checksum(archive)
        device = device_info(index)
        machine.require(index.device, device)
        variant = _find_unfinished(index)
        fault = check_requirements(variant, index, device)
        if fault is not None:
            raise fault
        key, engine = Key.of(index, variant, device), engine_path(path)
        # An earlier engine is used if its key is equal; else its timing cache may still serve.
        before = find_sealed(path, index)
        if not force and _fits(before, key):
            # A killed `finish --force` may have left its temporary file beside the good engine.
            sweep(engine)
            # It was sealed after it had passed.
            verdict, reasons = decide([], list_doubts(index))
            return {
                "built": False,
                "engine": engine,
                "key": asdict(key),
                "verdict": verdict,
                "reasons": reasons,
            }
        with lock_part(engine) as publish:
            started = time.perf_counter()
            plan, timing_cache = _build(archive, index, device, _timing_cache(before, key))
            built = time.perf_counter()
            proof = _prove(archive, index, variant, device, plan)
            if not proof["passed"]:
                print_status(*describe_proof(proof))
                raise _gate_error(proof)
            seconds = {"build": built - started, "verify": time.perf_counter() - built}
            details: Dict[str, object] = {
                "cuda_driver": device["cuda_driver"],
                "l4t": device["l4t"],
                "gpu_memory_bytes": device["gpu_memory_bytes"],
                "seconds": seconds,
            }
            # Only here, after the gates, does the engine get its final name.
            publish(lambda file: write(file, key, plan, timing_cache, details))
    verdict, reasons = decide(list_questions(proof), list_doubts(index))
    return {
        "built": True,
        "engine": engine,
        "key": asdict(key),
        "verdict": verdict,
        "reasons": reasons,
        "bytes": len(plan),
        "seconds": seconds,
        "preprocessing": proof["preprocessing"],
        "quality": proof["quality"],
        "fidelity": proof["fidelity"],
    }


def _find_unfinished(index: Index) -> Variant:
    # The command line has checked that the bundle has one; `read_variants` allows only one.
    return next(variant for variant in index.variants if variant.unfinished)


def _fits(before: Union[Sealed, DeviceError, None], key: Key) -> bool:
    """Return True for an intact sealed engine with this key; print the fault of a damaged one."""
    if isinstance(before, DeviceError):
        print_status(f"{before.what}: {before.why}")
        return False
    if before is None or before.key != key:
        return False
    try:
        before.read(PLAN)
    except DeviceError as error:
        print_status(f"{error.what}: {error.why}")
        return False
    return True


def _timing_cache(before: Union[Sealed, DeviceError, None], key: Key) -> bytes:
    """Return the timing cache of an earlier build on this GPU and TensorRT; else b"".

    Kernel timings do not depend on the bundle, so a cache from another one serves as well.
    """
    if not isinstance(before, Sealed):
        return b""
    # Compare only GPU and TensorRT: substitute the fields that may differ.
    same = {**asdict(before.key), "bundle": key.bundle, "variant": key.variant}
    if same != asdict(key):
        return b""
    try:
        return before.read(TIMING)
    except DeviceError:
        # A damaged cache is no loss: it only saves time, and this build writes a new one.
        return b""


def _build(
    archive: Archive, index: Index, device: DeviceFacts, timing_cache: bytes
) -> Tuple[bytes, bytes]:
    from ..session.tensorrt_build import Options, build
    from ..session.tensorrt_session import import_tensorrt

    print_status(
        f"building the engine for {device['gpu']} with TensorRT {device['tensorrt']}; "
        "on a small board this takes about ten minutes"
    )
    options = index.engine_options
    return build(
        import_tensorrt(),
        check_file(archive, index, index.model),
        Options(options.workspace_mb << 20, options.profiles, options.dla_core),
        timing_cache,
        lambda seconds: print_status(f"  still building, {seconds:.0f} s"),
    )


def _prove(
    archive: Archive, index: Index, variant: Variant, device: DeviceFacts, plan: bytes
) -> Answers:
    """Measure fidelity and quality of the engine on the reference samples."""
    from ..model import Model
    from ..session.tensorrt_session import TensorrtSession
    from .verify import on_samples

    session = TensorrtSession(plan, index.inputs, index.outputs, index.engine_options.dla_core)
    return on_samples(archive, Model(index, session, Choice(variant, None, False, (), device)))


def describe_report(report: FinishDocument) -> List[str]:
    """Return the text of a report: every gate and the sealed file."""
    doubts = [f"{report['verdict']}: {reason['text']}" for reason in report["reasons"]]
    if not report["built"]:
        finished = f"already finished: {report['engine']} is for this bundle, GPU and TensorRT"
        return [finished, *doubts]
    sealed = f"sealed: {report['engine']} ({report['bytes']:,} bytes)"
    return [*describe_proof(cast("Answers", report)), sealed, *doubts]


def _gate_error(proof: Answers) -> GateError:
    return GateError(
        "engine-gate-missed",
        "the engine missed a gate and was not sealed",
        why="\n".join(list_missed(proof)),
        hint="use another variant of the bundle: python3 BUNDLE info",
    )
