"""Stage `emulate`: an integer model runs on the target's own CPUs, emulated.

What one CPU computes, another need not: x86 without VNNI saturates where x86 with it does not, and
a build host of another architecture only stands in for the target's. So the bundle is verified on
the CPUs that the profile names, before it is published; one of them that does not give this
host's answers is a missed gate. Where they cannot be emulated here, the report says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgepack.chain import Step
from edgepack.device import Emulated, ask, ready
from edgepack.errors import DeviceError, HostError
from edgepack.ledger import Ledger
from edgepack.report.figures import seconds_text, snr_text
from edgepack.report.findings import worst
from edgepack.request import Request
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.device.machine import describe
from edgepack.spec.target import Target

# x86 adds u8 x s8 products in 16 bits unless it has one of these.
WIDE_SUMS = ("avx512_vnni", "avx_vnni")
# How much longer than on its host an inference takes in qemu 7.2, in integers throughout and in
# float at the most, as EfficientNet-Lite0 does: on x86-64 2 s for 3.4 ms and 118 s for 6.3 ms.
SLOWER = {"x86_64": (600, 19_000), "aarch64": (400, 1_000)}
# Seconds on one CPU: what all samples together should take, and what one may take.
ENOUGH, MOST = 10.0, 300.0
SAMPLES = 8


def foreign(target: Target) -> bool:
    """Whether this host is of another architecture than the target."""
    return bool(describe()["arch"] != target.arch)


def stands_in(target: Target) -> bool:
    """Whether this host stands in for another processor, or a GPU.

    What needs a GPU is judged by its ONNX on the CPU, so that a build needs none; that a GPU
    computes the same is for `verify` to prove there.
    """
    return foreign(target) or target.engine != ONNXRUNTIME


def check_host(request: Request, host: Mapping[str, Any]) -> None:
    """Refuse a host whose answers are not those that the target's CPUs will give.

    Args:
        request: what is to be built.
        host: as `edgepack.runtime.device.machine.describe` gives it.

    Raises HostError where this host would saturate and a CPU of the target would not.
    """
    # What is for a GPU runs here in float.
    integer = request.target.engine == ONNXRUNTIME
    if (
        _full_range(request)
        and integer
        and host["arch"] == "x86_64"
        and not set(WIDE_SUMS) & set(host["isa"] or ())
    ):
        raise HostError(
            "host-saturates",
            f"this host cannot give the answers that {request.target.name} will give",
            why=f"{host['cpu']} has no VNNI: it adds two products of full-range weights in 16 "
            "bits, where they saturate",
            hint="build on a CPU with VNNI, or --chain quantize:range=pair-safe",
        )


def emulates(target: Target) -> bool:
    """Whether a build for a target has this stage."""
    return foreign(target) or bool(target.emulate)


def emulate(
    request: Request, bundle: Path, host: Mapping[str, Any], integer_only: bool, ledger: Ledger
) -> dict[str, Mapping[str, Any]]:
    """Verify a bundle on the target's CPUs.

    Args:
        request: what is built.
        bundle: with this host's answers.
        host: the verdict on this host.
        integer_only: whether the model's arithmetic is integer throughout.
        ledger: gets the stage, and a warning where an integer model was not proved.

    Returns what the fidelity question found, by CPU; empty where nothing was emulated. Raises what
    the loader refused with.
    """
    if not emulates(request.target):
        return {}
    cpus = request.target.emulate
    with ledger.stage("emulate", len(cpus)) as stage:
        seconds = _expected(request.target, host, integer_only)
        reason = _why_not(request, seconds)
        if reason:
            stage.set(status="skipped")
            stage.note(reason)
            ledger.warn(*_unproved(request, reason))
            return {}
        samples = max(1, min(SAMPLES, int(ENOUGH / seconds)))
        found = _ask_each(cpus, bundle, samples, stage.progress.advance)
        stage.note(*(f"{cpu}, emulated: {_told(fidelity)}" for cpu, fidelity in found.items()))
    return found


def _expected(target: Target, host: Mapping[str, Any], integer_only: bool) -> float:
    """Seconds that one emulated inference takes, by what it took here."""
    factors = SLOWER[target.arch]
    here: float = host["seconds"]["reference"] / max(1, host["fidelity"]["samples"])
    return max(here, 1e-6) * factors[0 if integer_only else 1]


def _ask_each(
    cpus: Sequence[str], bundle: Path, samples: int, advance: Callable[[], None]
) -> dict[str, Mapping[str, Any]]:
    """The fidelity on every CPU; as many at a time as this host has cores."""
    cores = os.cpu_count() or 1
    at_once = min(len(cpus), cores)

    def fidelity(device: Emulated) -> Mapping[str, Any]:
        options = (f"--samples={samples}", f"--threads={cores // at_once}")
        try:
            verdict, _ = ask(device, device.put(bundle), "verify", *options)
        except DeviceError as error:
            hint = f"{error.hint}\n--no-emulate builds without this proof"
            raise DeviceError(error.code, error.what, why=error.why, hint=hint) from error
        answered: Mapping[str, Any] = verdict["fidelity"]
        return answered

    found = {}
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        devices = [stack.enter_context(Emulated(cpu, runs_bundle=True)) for cpu in cpus]
        try:
            for device, answered in zip(devices, pool.map(fidelity, devices), strict=True):
                found[device.name] = answered
                advance()
        except BaseException:
            # A build that is stopped does not wait for what it started.
            for device in devices:
                device.stop()
            raise
    return found


def _why_not(request: Request, seconds: float) -> str:
    """Why the target's CPUs are not emulated; empty where they are."""
    cpus = request.target.emulate
    if not cpus:
        return "the profile names no CPU to emulate"
    if not request.emulate:
        return "--no-emulate"
    if not _integer(request):
        return "an emulated float model takes minutes for each sample: edgepack verify --emulate"
    fault = next(filter(None, map(ready, cpus)), None)
    if fault is not None:
        return f"{fault.what}: {fault.hint}"
    if seconds > MOST:
        return (
            f"one sample could take {seconds_text(seconds)} there: "
            f"edgepack verify --emulate {cpus[0]}"
        )
    return ""


def _integer(request: Request) -> bool:
    return bool(_multiplying(request))


def _full_range(request: Request) -> bool:
    return any(step.options.get("range") == "full" for step in _multiplying(request))


def _multiplying(request: Request) -> list[Step]:
    """The steps after which integers are multiplied: not where the file alone has them."""
    steps = (step for step in request.chain if step.name == "quantize")
    return [step for step in steps if step.options.get("mode") != "weights"]


def _unproved(request: Request, reason: str) -> list[str]:
    """What the reader of the report must know where nothing was emulated."""
    target = request.target
    if foreign(target):
        return [
            f"not run on any {target.arch}; the answers are those of this "
            f"{describe()['arch']} host: {reason}"
        ]
    if not _integer(request):
        return []
    cpus = "CPUs without VNNI" if target.arch == "x86_64" else ", ".join(target.emulate)
    if target.arch == "x86_64" and _full_range(request):
        cpus += ", where full-range weights saturate"
    return [f"not verified on {cpus} ({reason})"]


def _told(fidelity: Mapping[str, Any]) -> str:
    if all(metrics["bit_exact"] for metrics in fidelity["outputs"].values()):
        return "the same bits"
    metrics = worst(fidelity["outputs"])
    found = snr_text(metrics) if metrics else "no outputs"
    return f"{found} from this host's answers" + ("" if fidelity["passed"] else ", missed")
