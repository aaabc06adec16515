"""Stage `emulate`: run an integer model on emulations of the target's CPUs.

CPUs can compute different answers: x86 without VNNI saturates, x86 with VNNI does not, and a
build host of another architecture only represents the target's. So the bundle is verified on the
CPUs that the profile names before it is published, and a gate is missed if one of them differs
from this host. If they cannot be emulated here, the report says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from edgepack import engine
from edgepack.context import Context
from edgepack.device import Emulated, ready, require_fidelity, verify_bundle
from edgepack.errors import DeviceError, HostError
from edgepack.host import is_foreign, may_saturate, multiplies_integers, needs_emulation
from edgepack.report.figures import format_seconds
from edgepack.report.findings import format_worst
from edgepack.request import Request
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.device.machine import describe
from edgepack.runtime.documents import Question, Verdict
from edgepack.spec.target import Target

# Slowdown of an inference in qemu 7.2 against its host: all-integer, and float at most. Measured
# on EfficientNet-Lite0: on x86-64 2 s for 3.4 ms and 118 s for 6.3 ms.
SLOWER = {"x86_64": (600, 19_000), "aarch64": (400, 1_000)}
# Seconds on one CPU: budget for all samples together, and limit for one of them.
ENOUGH, MOST = 10.0, 300.0
SAMPLES = 8


def emulate(
    context: Context, bundle: Path, host: Verdict, integer_only: bool, options: Sequence[str] = ()
) -> dict[str, Question]:
    """Verify a bundle on the target's CPUs; warn if an integer model was not verified.

    Args:
        context: the build.
        bundle: with this host's answers.
        host: the verdict on this host.
        integer_only: True if all arithmetic of the model is integer.
        options: of the loader, such as the variant.

    Returns the fidelity by CPU; empty if nothing was emulated. Raises the loader's errors.
    """
    request = context.request
    if not needs_emulation(request.target):
        return {}
    cpus = request.target.emulate
    with context.ledger.stage("emulate", len(cpus)) as stage:
        seconds = _expected_seconds(request.target, host, integer_only)
        reason = _skip_reason(request, bundle, seconds)
        if reason:
            stage.set(status="skipped")
            stage.note(reason)
            context.ledger.warn(*_describe_unverified(request, reason))
            return {}
        samples = max(1, min(SAMPLES, int(ENOUGH / seconds)))
        # No emulator stands in for another: it has the processor of the target.
        named = () if "--stand-in" in options else tuple(options)
        fidelities = _ask_each(cpus, bundle, samples, stage.progress.advance, named)
        for cpu, fidelity in fidelities.items():
            stage.note(f"{cpu}, emulated: {_describe_fidelity(fidelity)}")
    return fidelities


def require_emulators(request: Request) -> None:
    """Refuse a build that would end UNVERIFIED because nothing here runs the target's processor.

    Hours of a build are not worth a bundle that its command could have verified. Raises HostError.
    """
    target = request.target
    # No emulator has a GPU; and `--no-emulate` states that the bundle is verified elsewhere.
    if not request.emulate or engine.find_runtime(target) != ONNXRUNTIME:
        return
    if not is_foreign(target):
        return
    instead = "without it: --no-emulate --allow-unverified, and `verify` on the device"
    if not target.emulate:
        raise HostError(
            "target-not-runnable",
            f"this {describe()['arch']} host cannot run a bundle for {target.arch}",
            why=f"the profile {target.name} names no CPU to emulate",
            hint=f'name one in the profile, such as [emulate] cpus = ["cortex-a53"]\n{instead}',
        )
    for cpu in target.emulate:
        fault = ready(cpu)
        if fault is not None:
            raise HostError(fault.code, fault.what, why=fault.why, hint=f"{fault.hint}\n{instead}")


def _expected_seconds(target: Target, host: Verdict, integer_only: bool) -> float:
    """Estimate the seconds of one emulated inference from its time on this host."""
    # 8 reference samples in 0.08 s here are 10 ms each: on x86-64 about 6 s each for int8.
    factors = SLOWER[target.arch]
    seconds = host["seconds"]["reference"] / max(1, require_fidelity(host)["samples"])
    return max(seconds, 1e-6) * factors[not integer_only]


def emulate_variant(
    cpus: Sequence[str], bundle: Path, host: Verdict, variant: str
) -> dict[str, Question]:
    """Return the fidelity of a further variant on emulated CPUs.

    Args:
        cpus: that emulated the bundle's first engine.
        bundle: with this host's answers.
        host: the verdict on the variant on this host.
        variant: its name.

    Raises the loader's errors, such as that the variant does not run on one of the CPUs.
    """
    # OpenVINO compiles its kernels, and so slows down as integers do, and float hardly more: the
    # int8 EfficientNet-Lite0 takes 1.5 s on a Haswell and 3.8 ms here.
    seconds = host["seconds"]["reference"] / max(1, require_fidelity(host)["samples"])
    samples = max(1, min(SAMPLES, int(ENOUGH / (max(seconds, 1e-6) * SLOWER["x86_64"][0]))))
    return _ask_each(cpus, bundle, samples, lambda: None, ("--variant", variant))


def _ask_each(
    cpus: Sequence[str],
    bundle: Path,
    samples: int,
    advance: Callable[[], None],
    named: Sequence[str],
) -> dict[str, Question]:
    """Return the fidelity on every CPU; as many run at a time as this host has cores."""
    # Two CPUs on 8 cores run at once with 4 threads each; four CPUs on 2 cores two at a time.
    cores = os.cpu_count() or 1
    at_once = min(len(cpus), cores)

    def fidelity(device: Emulated) -> Question:
        options = (f"--samples={samples}", f"--threads={cores // at_once}", *named)
        try:
            verdict = verify_bundle(device, device.put(bundle), *options)
        except DeviceError as error:
            hint = f"{error.hint}\n--no-emulate skips this verification"
            raise DeviceError(error.code, error.what, why=error.why, hint=hint) from error
        return _join_preprocessing(verdict)

    fidelities = {}
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        devices = []
        for cpu in cpus:
            devices.append(stack.enter_context(Emulated(cpu, runs_bundle=True)))
        try:
            for device, answer in zip(devices, pool.map(fidelity, devices), strict=True):
                fidelities[device.name] = answer
                advance()
        except BaseException:
            # An interrupted build does not wait for its emulators.
            for device in devices:
                device.stop()
            raise
    return fidelities


def _join_preprocessing(verdict: Verdict) -> Question:
    """Return the fidelity of a verdict, of which the inputs made of raw samples are part."""
    fidelity, preprocessing = require_fidelity(verdict), verdict["preprocessing"]
    if preprocessing is None:
        return fidelity
    return {
        **fidelity,
        "gates": [*preprocessing["gates"], *fidelity["gates"]],
        "passed": preprocessing["passed"] and fidelity["passed"],
    }


def _skip_reason(request: Request, bundle: Path, seconds: float) -> str:
    """Return the reason for not emulating the target's CPUs; "" to emulate them."""
    cpus = request.target.emulate
    if not cpus:
        return "the profile names no CPU to emulate"
    if not request.emulate:
        return "--no-emulate"
    # Another architecture is run for float models as well: nothing else has run them.
    if not multiplies_integers(request.chain) and not is_foreign(request.target):
        return "an emulated float model takes minutes for each sample: edgepack verify --emulate"
    for cpu in cpus:
        fault = ready(cpu, str(bundle))
        if fault is not None:
            return f"{fault.what}: {fault.hint}"
    if seconds > MOST:
        return (
            f"one sample could take {format_seconds(seconds)} there: "
            f"edgepack verify --emulate {cpus[0]}"
        )
    return ""


def _describe_unverified(request: Request, reason: str) -> list[str]:
    """Return the warnings of a report without emulation."""
    target = request.target
    if is_foreign(target):
        return [
            f"not run on any {target.arch}; the answers are those of this "
            f"{describe()['arch']} host: {reason}"
        ]
    if not multiplies_integers(request.chain):
        return []
    cpus = ", ".join(target.emulate)
    if target.arch == "x86_64":
        cpus = "CPUs without VNNI"
        if may_saturate(request.chain):
            cpus += ", where full-range weights saturate"
    return [f"not verified on {cpus} ({reason})"]


def _describe_fidelity(fidelity: Question) -> str:
    """Return "the same bits", or the SNR: "62.1 dB from this host's answers, missed"."""
    if all(metrics["bit_exact"] for metrics in fidelity["outputs"].values()):
        return "the same bits"
    distance = f"{format_worst(fidelity['outputs'], 'no outputs')} from this host's answers"
    if not fidelity["passed"]:
        distance += ", missed"
    return distance
