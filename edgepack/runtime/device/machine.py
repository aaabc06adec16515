"""Describe the device that runs this process, and check a bundle's requirements."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import TYPE_CHECKING, Dict, List, Tuple

from ..errors import DeviceError
from .cpu_names import arm_name

if TYPE_CHECKING:
    from ..documents import DeviceNeeds, MachineDocument

ARCHS = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
CPUINFO = "/proc/cpuinfo"


def _cpuinfo(path: str) -> Dict[str, str]:
    """Read the first processor's fields, keys in lower case; empty if there is no such file."""
    fields: Dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                # Lines are "model name : Cortex-A76"; an empty line ends a processor's fields.
                key, colon, value = line.partition(":")
                if not colon and fields:
                    break
                if colon:
                    fields[key.strip().lower()] = value.strip()
    except OSError:
        return {}
    return fields


def describe() -> MachineDocument:
    """Return arch, CPU, instruction sets, operating system and Python of this device.

    `isa` is None if the operating system does not report it.
    """
    cpu = _cpuinfo(CPUINFO)
    # x86 calls its instruction sets "flags", ARM "features".
    flags = cpu.get("flags") or cpu.get("features")
    isa = None
    if flags:
        isa = sorted(flags.split())
    machine = platform.machine().lower()
    return {
        "arch": ARCHS.get(machine, machine),
        "cpu": cpu.get("model name") or arm_name(cpu) or platform.processor() or machine,
        "cores": os.cpu_count() or 1,
        "isa": isa,
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def version_tuple(text: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version: "1.31.1+cu12" is (1, 31, 1), "2.0rc1" (2, 0)."""
    leading = re.match(r"[0-9]+(\.[0-9]+)*", text)
    if leading is None:
        return ()
    return tuple(map(int, leading.group().split(".")))


def satisfies(version: str, specifier: str) -> bool:
    """Check a version against a specifier.

    A specifier is a comma-separated list of ">=", "<" and "==" with a version; a bare version is
    the minimum. Only as many numbers are compared as the specifier has:

        10.3.0.30 satisfies "==10.3" and ">=10,<11", but not "10.3.1"
    """
    numbers = version_tuple(version)
    for part in filter(None, specifier.split(",")):
        bound = version_tuple(part.lstrip("<>="))
        compared = (numbers + (0,) * len(bound))[: len(bound)]
        if part.startswith("<"):
            fits = compared < bound
        elif part.startswith("=="):
            fits = compared == bound
        else:
            fits = compared >= bound
        if not fits:
            return False
    return True


def require(needs: DeviceNeeds, device: MachineDocument, *, any_arch: bool = False) -> None:
    """Raise DeviceError unless this device meets the bundle's minimum requirements.

    Args:
        needs: the index's `device`: arch, isa, python.
        device: the result of `describe`.
        any_arch: accept another kind of processor, as the build host must.
    """
    arch = needs.get("arch")
    foreign = bool(arch) and device["arch"] != arch
    if foreign and not any_arch:
        raise DeviceError(
            "device-arch",
            "this bundle is not for this kind of processor",
            why=f"it is for {arch}; this is {device['arch']}",
            hint="build it for a target profile of this device: edgepack targets list",
        )
    # A system that does not report its instruction sets is trusted to have them.
    lacking = []
    if device["isa"]:
        lacking = [flag for flag in needs.get("isa", ()) if flag not in device["isa"]]
    if lacking and not foreign:
        raise DeviceError(
            "device-isa",
            "this processor is older than the bundle needs",
            why=f"it lacks {', '.join(lacking)}: {device['cpu']}",
            hint="build for a target profile with lower requirements",
        )
    floor = needs.get("python", "3.8")
    if version_tuple(platform.python_version()) < version_tuple(floor):
        raise DeviceError(
            "device-python",
            "this Python is older than the bundle needs",
            why=f"it needs {floor} or newer; this is {device['python']}",
            hint="run it with a newer python3",
        )


def allowed_cores() -> List[int]:
    """Return the logical cores that this process may run on."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return list(range(os.cpu_count() or 1))


def peak_rss() -> int:
    """Return the peak resident memory of this process, in bytes; 0 if it is unknown."""
    try:
        # Linux keeps ru_maxrss across exec, so it may belong to the process that started this
        # one. VmHWM covers this program only.
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass  # Not Linux: fall back to getrusage.
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, other systems in KiB.
    return peak if sys.platform == "darwin" else peak * 1024
