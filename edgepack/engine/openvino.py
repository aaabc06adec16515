"""OpenVINO as a further engine of a CPU's bundle: it runs the same ONNX as onnxruntime.

It rounds integers otherwise than onnxruntime, and two CPUs do so in it, so that its answers are
held to an SNR. It needs a newer Python than the loader: a device without it runs onnxruntime.
"""

from __future__ import annotations

from importlib import metadata

from edgepack.runtime.bundle.engines import BF16, DEFAULTS, F32, OPENVINO, Settings, Variant
from edgepack.runtime.device.machine import describe

PACKAGE = "openvino"
# Oldest Python, and the processor, of the wheels that the bundle's requirements name.
MARKER = "python_version >= '3.10' and platform_machine == 'x86_64'"
# Instruction set with which OpenVINO computes in bfloat16; AMX comes with it.
BF16_ISA = "avx512_bf16"


def list_variants() -> tuple[Variant, ...]:
    """Return the variants that this host can run, in float32 first; empty without the package."""
    if not installed():
        return ()
    variants = [make_variant()]
    if BF16_ISA in (describe()["isa"] or ()):
        variants.append(make_variant(Settings(precision=BF16)))
    return tuple(variants)


def installed() -> bool:
    """Return True if OpenVINO is installed on this host."""
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def make_variant(settings: Settings = DEFAULTS) -> Variant:
    """Return the variant of some settings, with what they need of the device.

    It is named after its precision: "openvino", or "openvino-bf16".
    """
    name = OPENVINO
    if settings.precision != F32:
        name += f"-{settings.precision}"
    # Answers of an older release were not compared with the original's.
    year = metadata.version(PACKAGE).split(".")[0]
    if settings.precision == BF16:
        return Variant(
            name, OPENVINO, {"engine_version": f">={year}", "isa": [BF16_ISA]}, settings=settings
        )
    return Variant(name, OPENVINO, {"engine_version": f">={year}"}, settings=settings)


def requirements() -> str:
    """Return the lines of requirements.txt, which a device with an older Python skips."""
    return f"{PACKAGE}=={metadata.version(PACKAGE)}; {MARKER}\n"
