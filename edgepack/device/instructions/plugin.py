"""The plugin that makes qemu count, compiled on demand and kept in the cache.

It is C, shipped as source, since it is bound to the host's processor and to qemu's plugin
interface. It needs a C compiler and no header of qemu's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from edgepack import files
from edgepack.cache import EMULATOR, default_folder
from edgepack.device.cpus import find
from edgepack.device.emulated import require_qemu
from edgepack.errors import HostError

SOURCES = tuple(Path(__file__).parent / name for name in ("plugin.c", "classes.h"))
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden")
INSTALL_COMPILER = "apt-get install gcc libc6-dev"
# From this version of qemu on, its plugin interface is 2 and takes no older plugin.
INTERFACE_2 = 9


def plugin(cpu: str) -> Path:
    """The compiled plugin for the qemu that emulates a CPU.

    Raises SpecError where there is no such CPU, HostError where its qemu takes no plugins, there
    is no compiler, or the plugin does not compile.
    """
    qemu = require_qemu(find(cpu))
    interface = _interface(qemu)
    compiler = _compiler()
    digest = hashlib.sha256(f"{platform.machine()} {interface} {compiler}".encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    name = f"instructions-{digest.hexdigest()[:16]}"
    place = default_folder() / EMULATOR / name / "plugin.so"
    if not os.path.isfile(place):  # noqa: PTH113  # as in `Sysroot.prepared`
        _compile(compiler, interface, place)
    return place


def countable(cpu: str) -> HostError | None:
    """Why no instructions can be counted on a CPU here; None where they can."""
    try:
        _interface(require_qemu(find(cpu)))
        _compiler()
    except HostError as error:
        return error
    return None


def _compiler() -> str:
    """The host's C compiler; not $CC, which in an embedded project is the device's."""
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise HostError(
            "compiler-missing",
            "the plugin that counts instructions cannot be compiled",
            why="there is no C compiler on PATH: " + ", ".join(COMPILERS),
            hint=INSTALL_COMPILER,
        )
    return found


@cache
def _interface(qemu: str) -> int:
    """The version of the plugin interface that qemu is to be given."""
    if "-plugin " not in _output(qemu, "-h"):
        raise HostError(
            "qemu-without-plugins",
            f"{qemu} cannot count instructions",
            why="it was built without plugins, as every static build is (Debian 13's qemu-user "
            "among them)",
            hint="put a qemu that was built with --enable-plugins on PATH, as Debian 12's is",
        )
    found = re.search(r"version (\d+)\.", _output(qemu, "--version"))
    return 2 if found and int(found[1]) >= INTERFACE_2 else 1


def _output(*command: str) -> str:
    """What a program prints, whatever its exit status: `qemu -h` has one of its own."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            "qemu-missing",
            f"{command[0]} does not run",
            why=str(error),
            hint="apt-get install qemu-user",
        ) from error
    return done.stdout


def _compile(compiler: str, interface: int, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(place, error) from error
    with files.temporary_beside(place) as temporary:
        version = f"-DPLUGIN_VERSION={interface}"
        done = subprocess.run(
            [compiler, *FLAGS, version, "-o", str(temporary), str(SOURCES[0])],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise HostError(
                "plugin-failed",
                "the plugin that counts instructions does not compile",
                why="\n".join([f"{compiler} failed: {done.returncode}", *said[:6]]),
                hint=INSTALL_COMPILER,
            )
        files.publish(temporary, place)
