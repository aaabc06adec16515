"""The device this process runs on: what it is, and whether a bundle may run here."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Any, Dict, Mapping, Tuple

from ..errors import DeviceError
from .cpu_names import arm_name

ARCHS = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
CPUINFO = "/proc/cpuinfo"


def _cpuinfo(path: str) -> Dict[str, str]:
    """The first processor's fields, keys in lower case; empty where there is no such file."""
    fields: Dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                key, colon, value = line.partition(":")
                if not colon and fields:
                    break
                if colon:
                    fields[key.strip().lower()] = value.strip()
    except OSError:
        return {}
    return fields


def describe() -> Dict[str, Any]:
    """Arch, CPU, instruction sets, operating system and Python of this device.

    `isa` is None where the operating system does not tell.
    """
    cpu = _cpuinfo(CPUINFO)
    flags = cpu.get("flags") or cpu.get("features")
    machine = platform.machine().lower()
    return {
        "arch": ARCHS.get(machine, machine),
        "cpu": cpu.get("model name") or arm_name(cpu) or platform.processor() or machine,
        "cores": os.cpu_count() or 1,
        "isa": sorted(flags.split()) if flags else None,
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def version_tuple(text: str) -> Tuple[int, ...]:
    """The leading numbers of a version: "1.31.1+cu12" is (1, 31, 1), "2.0rc1" is (2, 0)."""
    leading = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(map(int, leading.group().split("."))) if leading else ()


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version is one that a specifier names.

    A specifier is one or more of ">=", "<" and "==" with a version, joined by commas; a bare
    version is the oldest. As many numbers are compared as the specifier has: 10.3.0.30 is "==10.3".
    """
    found = version_tuple(version)
    for part in filter(None, specifier.split(",")):
        wanted = version_tuple(part.lstrip("<>="))
        given = (found + (0,) * len(wanted))[: len(wanted)]
        if part.startswith("<"):
            fits = given < wanted
        elif part.startswith("=="):
            fits = given == wanted
        else:
            fits = given >= wanted
        if not fits:
            return False
    return True


def require(needs: Mapping[str, Any], device: Mapping[str, Any], *, any_arch: bool = False) -> None:
    """Raise DeviceError unless this device meets the bundle's floor.

    Args:
        needs: the index's `device`: arch, isa, python.
        device: as `describe` gives it.
        any_arch: take another kind of processor all the same, as a build for one must.
    """
    arch = needs.get("arch")
    other = bool(arch) and device["arch"] != arch
    if other and not any_arch:
        raise DeviceError(
            "device-arch",
            "this bundle is not for this kind of processor",
            why="it is for {}; this is {}".format(arch, device["arch"]),
            hint="build it for a target profile of this device: edgepack targets list",
        )
    wanted = [flag for flag in needs.get("isa", ()) if flag not in (device["isa"] or [flag])]
    if wanted and not other:
        raise DeviceError(
            "device-isa",
            "this processor is older than the bundle needs",
            why="it lacks {}: {}".format(", ".join(wanted), device["cpu"]),
            hint="build for a target profile with a lower floor",
        )
    floor = str(needs.get("python", "3.8"))
    if version_tuple(platform.python_version()) < version_tuple(floor):
        raise DeviceError(
            "device-python",
            "this Python is older than the bundle needs",
            why="it needs {} or newer; this is {}".format(floor, device["python"]),
            hint="run it with a newer python3",
        )


def peak_rss() -> int:
    """Peak resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:
        # Linux hands ru_maxrss on through exec: it would tell of the process that started this
        # one. The high-water mark is this program's own.
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass  # Not Linux; getrusage is what there is.
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
