"""Check the tags in a wheel's file name against this Python.

Names and tags follow PEP 425, 427 and 600: NAME-VERSION-PYTHON-ABI-PLATFORM.whl, each of the last
three one tag or several joined by dots. `numpy-2.2.6-cp311-cp311-manylinux_2_17_x86_64.whl` is for
CPython 3.11 on x86-64 with glibc 2.17 or newer.
"""

from __future__ import annotations

import itertools
import os
import platform
import re
import struct
import sys
import sysconfig
from dataclasses import dataclass
from typing import List, Optional, Sequence, Set, Tuple

from ..device.machine import ARCHS
from ..errors import BundleError, DeviceError

# Glibc of the platform tags that do not state it (PEP 600).
LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-[0-9][A-Za-z0-9_.]*)?"
    r"-(?P<python>[A-Za-z0-9_.]+)-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl\Z"
)
Glibc = Tuple[int, int]

_GLIBC = re.compile(r"manylinux_([0-9]+)_([0-9]+)_(.+)\Z")


@dataclass(frozen=True)
class Tags:
    """Parsed file name of a wheel.

    Attributes:
        name: of the distribution, as spelled in the file name.
        version: of the distribution.
        pythons: "py3", "cp311".
        abis: "none", "abi3", "cp311".
        platforms: "any", "manylinux_2_28_aarch64".
    """

    name: str
    version: str
    pythons: Tuple[str, ...]
    abis: Tuple[str, ...]
    platforms: Tuple[str, ...]


@dataclass(frozen=True)
class Interpreter:
    """Python that wheels may run on.

    Attributes:
        version: as (3, 11).
        arch: "x86_64" or "aarch64".
        glibc: as (2, 36); None for another C library.
        abi: "cp311", or "cp313t" without a global lock; "" if it is not CPython.
        bits: of an address, since a 64-bit kernel may run a 32-bit Python.
    """

    version: Tuple[int, int]
    arch: str
    glibc: Optional[Glibc]
    abi: str
    bits: int = 64

    def __str__(self) -> str:
        words = ["CPython" if self.abi else "a Python that is not CPython,"]
        words.append(".".join(map(str, self.version)))
        if self.abi.endswith("t"):
            words.append("without a global lock")
        words.append("on " + self.arch)
        if self.bits != 64:
            words.append(f"in {self.bits} bits")
        libc = "no glibc"
        if self.glibc:
            libc = "glibc " + ".".join(map(str, self.glibc))
        return f"{' '.join(words)}, {libc}"


def this_python() -> Interpreter:
    """Return the Python that runs this process."""
    major, minor = sys.version_info[:2]
    machine = platform.machine().lower()
    cpython = sys.implementation.name == "cpython"
    abi = f"cp{major}{minor}" if cpython else ""
    if cpython and sysconfig.get_config_var("Py_GIL_DISABLED"):
        abi += "t"
    return Interpreter(
        (major, minor), ARCHS.get(machine, machine), _glibc(), abi, 8 * struct.calcsize("P")
    )


def interpreter(python: str, platforms: Sequence[str]) -> Interpreter:
    """Return the CPython of a profile: "3.11", with platform tags of one processor."""
    major, minor = map(int, python.split("."))
    arch, newest = "", None
    for platform_tag in platforms:
        needs = _needs(platform_tag)
        if needs is None:
            continue
        glibc = needs[0]
        arch = arch or needs[1]
        if glibc and (newest is None or glibc > newest):
            newest = glibc
    return Interpreter((major, minor), arch, newest, f"cp{major}{minor}")


def _glibc() -> Optional[Glibc]:
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None  # musl, or not Linux: there is no such name.
    version = re.match(r"glibc ([0-9]+)\.([0-9]+)", libc)
    if version is None:
        return None
    return int(version.group(1)), int(version.group(2))


def read_tags(wheel: str) -> Tags:
    """Parse the file name of a wheel. Raises BundleError for any other name."""
    match = _NAME.match(wheel)
    if not match:
        raise BundleError(
            "wheel-malformed",
            f"a file among the bundle's wheels is not a wheel: {wheel}",
            why="its name is not that of a wheel",
            hint="copy the bundle again from the build host",
        )
    # "py2.py3-none-any" joins two tags.
    return Tags(
        match.group("name"),
        match.group("version"),
        tuple(match.group("python").split(".")),
        tuple(match.group("abi").split(".")),
        tuple(match.group("platform").split(".")),
    )


def require(wheels: Sequence[Tags], here: Interpreter) -> None:
    """Raise DeviceError, naming the Python that they are for, unless every wheel runs here."""
    for wheel in wheels:
        if not _runs_on_python(wheel, here):
            hint = "run it with that Python, or set another under [wheels] in the target profile"
            raise _misfit("wheels-python", wheels, wheel, here, hint)
    for wheel in wheels:
        if not _runs_on_platform(wheel, here):
            hint = (
                "set this platform under [wheels] in the target profile, or install the bundle's "
                "requirements.txt"
            )
            raise _misfit("wheels-platform", wheels, wheel, here, hint)


def _misfit(
    code: str, wheels: Sequence[Tags], wheel: Tags, here: Interpreter, hint: str
) -> DeviceError:
    return DeviceError(
        code,
        "the bundle's wheels are not for this Python",
        why=f"they are for {describe_tags(wheels)}; this is {here}\n"
        f"{wheel.name} {wheel.version} does not run here",
        hint=hint,
    )


def describe_tags(wheels: Sequence[Tags]) -> str:
    """Return the Python that wheels are for, in words: "CPython 3.11 on x86_64, glibc ..."."""
    exact: Set[str] = set()
    archs: Set[str] = set()
    glibcs: List[Glibc] = []
    for wheel in wheels:
        # An ABI of a single version, such as cp311-cp311, excludes all others; cp38-abi3 does not.
        if len(wheel.abis) == 1 and wheel.abis[0] in wheel.pythons:
            exact.add(wheel.abis[0][2:])
        oldest: Optional[Glibc] = None
        for glibc, arch in filter(None, map(_needs, wheel.platforms)):
            archs.add(arch)
            if glibc and (oldest is None or glibc < oldest):
                oldest = glibc
        # A wheel needs the oldest of its tags, the set of wheels the newest of those.
        if oldest:
            glibcs.append(oldest)
    text = " and ".join(f"CPython {tag[0]}.{tag[1:]}" for tag in sorted(exact))
    text = text or "any Python 3"
    if archs:
        text += " on " + " and ".join(sorted(archs))
    if glibcs:
        text += f", glibc {'.'.join(map(str, max(glibcs)))} or newer"
    return text


def _runs_on_python(wheel: Tags, here: Interpreter) -> bool:
    pairs = itertools.product(wheel.pythons, wheel.abis)
    return any(_python_fits(python, abi, here) for python, abi in pairs)


def _python_fits(python: str, abi: str, here: Interpreter) -> bool:
    # On CPython 3.11 these run: py3-none, py38-none, cp38-abi3, cp311-cp311 and cp311-none; these
    # do not: py2-none, cp312-abi3 and cp310-cp310.
    tag = re.match(r"(py|cp)3([0-9]*)\Z", python)
    if tag is None:
        return False
    minor, exact = int(tag.group(2) or 0), f"cp3{here.version[1]}"
    if tag.group(1) == "py":
        return abi == "none" and minor <= here.version[1]
    if abi == "abi3":
        return here.abi == exact and minor <= here.version[1]
    return bool(here.abi) and python == exact and abi in ("none", here.abi)


def _runs_on_platform(wheel: Tags, here: Interpreter) -> bool:
    for tag in wheel.platforms:
        if tag == "any":
            return True
        needs = _needs(tag)
        if needs is None or here.bits != 64 or needs[1] != here.arch:
            continue
        if not needs[0] or (here.glibc is not None and here.glibc >= needs[0]):
            return True
    return False


def _needs(tag: str) -> Optional[Tuple[Optional[Glibc], str]]:
    """Return the minimum glibc and the architecture of a Linux platform tag; None for others.

    A bare "linux_aarch64" does not state its C library.
    """
    explicit = _GLIBC.match(tag)
    if explicit:
        return (int(explicit.group(1)), int(explicit.group(2))), explicit.group(3)
    kind, _, arch = tag.partition("_")
    if kind == "linux":
        return None, arch
    if kind in LEGACY:
        return LEGACY[kind], arch
    return None
