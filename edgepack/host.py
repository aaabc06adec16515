"""This machine as the build host: whether it can give the answers of the target's devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgepack import engine
from edgepack.errors import HostError
from edgepack.passes import Step
from edgepack.request import Request
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.device.machine import describe
from edgepack.spec.target import Target

# x86 adds u8 x s8 products in 16 bits unless it has one of these.
WIDE_SUMS = ("avx512_vnni", "avx_vnni")


def is_foreign(target: Target) -> bool:
    """Return True if this host has another architecture than the target."""
    return bool(describe()["arch"] != target.arch)


def stands_in(target: Target) -> bool:
    """Return True if this host only represents the target: another processor, or a GPU.

    A model for a GPU is judged by its ONNX on the CPU, so that a build needs no GPU; `verify`
    compares the GPU's answers on the device.
    """
    return is_foreign(target) or engine.find_runtime(target) != ONNXRUNTIME


def needs_emulation(target: Target) -> bool:
    """Return True if a build for the target verifies it on emulated CPUs."""
    return is_foreign(target) or bool(target.emulate)


def check_host(request: Request, host: Mapping[str, Any]) -> None:
    """Refuse a host that answers differently from the target's CPUs.

    Args:
        request: the build.
        host: the result of `edgepack.runtime.device.machine.describe`.

    Raises HostError if this host would saturate and a CPU of the target would not.
    """
    # A model for a GPU runs here in float.
    if engine.find_runtime(request.target) != ONNXRUNTIME or not may_saturate(request.chain):
        return
    if host["arch"] != "x86_64" or set(WIDE_SUMS) & set(host["isa"] or ()):
        return
    raise HostError(
        "host-saturates",
        f"this host cannot compute the answers of {request.target.name}",
        why=f"{host['cpu']} has no VNNI: it adds two products of full-range weights in 16 "
        "bits, and the sum saturates",
        hint="build on a CPU with VNNI, or --chain quantize:range=pair-safe",
    )


def multiplies_integers(chain: Iterable[Step]) -> bool:
    """Return True if a pass leads to integer arithmetic, which differs between CPUs."""
    return any(step.read().multiplies_integers for step in chain)


def may_saturate(chain: Iterable[Step]) -> bool:
    """Return True if sums of the model overflow 16 bits on CPUs without VNNI."""
    return any(step.read().may_saturate for step in chain)
