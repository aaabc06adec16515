"""What a wheel's file name says of where it runs, held against the Python that is here.

Names and tags are those of PEP 425, 427 and 600: NAME-VERSION-PYTHON-ABI-PLATFORM.whl, each of the
last three one tag or several joined by dots.
"""

from __future__ import annotations

import os
import platform
import re
import struct
import sys
import sysconfig
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from ..device.machine import ARCHS
from ..errors import BundleError, DeviceError

# Glibc of the platform tags that do not spell it (PEP 600).
LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-[0-9][A-Za-z0-9_.]*)?"
    r"-(?P<python>[A-Za-z0-9_.]+)-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl\Z"
)
Glibc = Tuple[int, int]

_GLIBC = re.compile(r"manylinux_([0-9]+)_([0-9]+)_(.+)\Z")


@dataclass(frozen=True)
class Tags:
    """What the file name of a wheel says.

    Attributes:
        name: of the distribution, as the file spells it.
        version: of it.
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
    """A Python that wheels may run on.

    Attributes:
        version: as (3, 11).
        arch: "x86_64" or "aarch64".
        glibc: as (2, 36); None where the C library is another.
        abi: "cp311", and "cp313t" where Python has no global lock; "" of one that is not CPython.
        bits: of its addresses: a 64-bit kernel may run a 32-bit Python.
    """

    version: Tuple[int, int]
    arch: str
    glibc: Optional[Glibc]
    abi: str
    bits: int = 64

    def __str__(self) -> str:
        libc = "glibc {}.{}".format(*self.glibc) if self.glibc else "no glibc"
        return "{} {}.{}{} on {}{}, {}".format(
            "CPython" if self.abi else "a Python that is not CPython,",
            *self.version,
            " without a global lock" if self.abi.endswith("t") else "",
            self.arch,
            "" if self.bits == 64 else " in {} bits".format(self.bits),
            libc,
        )


def this_python() -> Interpreter:
    """The Python that runs this."""
    major, minor = sys.version_info[:2]
    machine = platform.machine().lower()
    cpython = sys.implementation.name == "cpython"
    unlocked = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return Interpreter(
        (major, minor),
        ARCHS.get(machine, machine),
        _glibc(),
        "cp{}{}{}".format(major, minor, unlocked) if cpython else "",
        8 * struct.calcsize("P"),
    )


def interpreter(python: str, platforms: Sequence[str]) -> Interpreter:
    """A device's CPython, as a profile states it: "3.11", with platform tags of one processor."""
    major, minor = (int(part) for part in python.split("."))
    needs = [need for need in map(_needs, platforms) if need]
    glibc = max((glibc for glibc, _ in needs if glibc), default=None)
    arch = needs[0][1] if needs else ""
    return Interpreter((major, minor), arch, glibc, "cp{}{}".format(major, minor))


def _glibc() -> Optional[Glibc]:
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None  # musl, or not Linux: there is no such name.
    found = re.match(r"glibc ([0-9]+)\.([0-9]+)", told)
    return (int(found.group(1)), int(found.group(2))) if found else None


def read_tags(wheel: str) -> Tags:
    """Read the file name of a wheel. Raises BundleError where it is none."""
    found = _NAME.match(wheel)
    if not found:
        raise BundleError(
            "wheel-malformed",
            "a file among the bundle's wheels is none: {}".format(wheel),
            why="its name is not that of a wheel",
            hint="fetch the bundle again from where it was built",
        )
    python, abi, system = (
        tuple(found.group(key).split(".")) for key in ("python", "abi", "platform")
    )
    return Tags(found.group("name"), found.group("version"), python, abi, system)


def require(wheels: Sequence[Tags], here: Interpreter) -> None:
    """Raise DeviceError unless every wheel runs on this Python, saying which one they are for."""
    for fits, code, hint in (
        (
            _runs_on_python,
            "wheels-python",
            "run it with that Python, or build with another under [wheels] in the target profile",
        ),
        (
            _runs_on_platform,
            "wheels-platform",
            "build with this platform under [wheels] in the target profile, or install the "
            "bundle's requirements.txt",
        ),
    ):
        unfit = [wheel for wheel in wheels if not fits(wheel, here)]
        if unfit:
            first = unfit[0]
            raise DeviceError(
                code,
                "the bundle's wheels are not for this Python",
                why="they are for {}; this is {}\n{} {} does not run here".format(
                    told(wheels), here, first.name, first.version
                ),
                hint=hint,
            )


def told(wheels: Sequence[Tags]) -> str:
    """The Python that wheels are for, in words."""
    exact = sorted({tag[2:] for wheel in wheels for tag in wheel.pythons if wheel.abis == (tag,)})
    needs = [[need for need in map(_needs, wheel.platforms) if need] for wheel in wheels]
    archs = sorted({arch for one in needs for _, arch in one})
    glibcs = [min(filter(None, (glibc for glibc, _ in one)), default=None) for one in needs]
    known = [glibc for glibc in glibcs if glibc]
    return "{}{}{}".format(
        " and ".join("CPython {}.{}".format(tag[0], tag[1:]) for tag in exact) or "any Python 3",
        " on " + " and ".join(archs) if archs else "",
        ", glibc {}.{} or newer".format(*max(known)) if known else "",
    )


def _runs_on_python(wheel: Tags, here: Interpreter) -> bool:
    return any(_python_fits(python, abi, here) for python in wheel.pythons for abi in wheel.abis)


def _python_fits(python: str, abi: str, here: Interpreter) -> bool:
    tag = re.match(r"(py|cp)3([0-9]*)\Z", python)
    if tag is None:
        return False
    minor, exact = int(tag.group(2) or 0), "cp3{}".format(here.version[1])
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
    """Oldest glibc and architecture of a platform tag of Linux; None for any other.

    A bare "linux_aarch64" says nothing of its C library.
    """
    spelled = _GLIBC.match(tag)
    if spelled:
        return (int(spelled.group(1)), int(spelled.group(2))), spelled.group(3)
    kind, _, arch = tag.partition("_")
    if kind == "linux":
        return None, arch
    return (LEGACY[kind], arch) if kind in LEGACY else None
