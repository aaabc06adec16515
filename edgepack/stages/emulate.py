"""Stage `emulate`: what was built for another architecture runs on that, emulated.

A build host of another architecture gives the answers and measures the quality: the arithmetic of
an integer model is the same there, bit for bit. That it is, is proved on the target's own CPUs
where they can be emulated here, and where they cannot, the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.device import Emulated, ask, ready
from edgepack.errors import HostError
from edgepack.ledger import Ledger
from edgepack.report.figures import snr_text
from edgepack.report.findings import worst
from edgepack.request import Request
from edgepack.runtime.device import describe
from edgepack.spec.target import Target

# x86 adds u8 x s8 products in 16 bits unless it has one of these.
WIDE_SUMS = ("avx512_vnni", "avx_vnni")


def foreign(target: Target) -> bool:
    """Whether this host is of another architecture than the target."""
    return bool(describe()["arch"] != target.arch)


def check_host(request: Request, host: Mapping[str, Any]) -> None:
    """Refuse a host that cannot give the answers of a target of another architecture.

    Args:
        request: what is to be built.
        host: as `edgepack.runtime.device.describe` gives it.

    Raises HostError where this host would saturate and the target does not.
    """
    full = any(step.options.get("range") == "full" for step in request.chain)
    if (
        full
        and host["arch"] == "x86_64" != request.target.arch
        and not set(WIDE_SUMS) & set(host["isa"] or ())
    ):
        raise HostError(
            "host-saturates",
            f"this host cannot give the answers that {request.target.name} will give",
            why=f"{host['cpu']} has no VNNI: it adds two products of full-range weights in 16 "
            "bits, where they saturate",
            hint="build on a CPU with VNNI, or --chain quantize:range=pair-safe",
        )


def emulate(request: Request, bundle: Path, ledger: Ledger) -> Mapping[str, Any] | None:
    """Verify a bundle on the target's CPUs.

    Returns what the fidelity question found on the first CPU that missed it, else on the first
    of all; None where the host is of the target's architecture or nothing can be emulated.
    Raises what the loader refused with.
    """
    if not foreign(request.target):
        return None
    cpus = request.target.emulate
    with ledger.stage("emulate", len(cpus)) as stage:
        reason = _why_not(request)
        if reason:
            stage.set(status="skipped")
            stage.note(reason)
            ledger.warn(
                f"not run on any {request.target.arch}; the answers are those of this "
                f"{describe()['arch']} host: {reason}"
            )
            return None
        found: dict[str, Mapping[str, Any]] = {}
        for cpu in cpus:
            with Emulated(cpu) as device:
                verdict, _ = ask(device, device.put(bundle), "verify")
            found[cpu] = verdict["fidelity"]
            stage.progress.advance()
        stage.note(*(f"{cpu}, emulated: {_told(fidelity)}" for cpu, fidelity in found.items()))
        stage.detail(fidelity=found)
    return next((f for f in found.values() if not f["passed"]), found[cpus[0]])


def _why_not(request: Request) -> str:
    """Why the target's CPUs are not emulated; empty where they are."""
    if not request.target.emulate:
        return "the profile names no CPU to emulate"
    fault = next(filter(None, map(ready, request.target.emulate)), None)
    if fault is not None:
        return f"{fault.what}: {fault.hint}"
    if not any(step.name == "quantize" for step in request.chain):
        return "an emulated float model takes minutes for each sample: edgepack verify --emulate"
    return ""


def _told(fidelity: Mapping[str, Any]) -> str:
    if all(metrics["bit_exact"] for metrics in fidelity["outputs"].values()):
        return "the same bits"
    metrics = worst(fidelity["outputs"])
    found = snr_text(metrics) if metrics else "no outputs"
    return f"{found} from this host's answers" + ("" if fidelity["passed"] else ", missed")
