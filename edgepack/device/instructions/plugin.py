"""Compilation of qemu's counting plugin, on demand, into the cache.

The plugin is shipped as C source, since a binary would be bound to the host's processor and to
qemu's plugin interface. It needs a C compiler but none of qemu's headers.
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
# First version of qemu with plugin interface 2, which loads no older plugin.
INTERFACE_2 = 9


def plugin(cpu: str) -> Path:
    """Return the compiled plugin for the qemu that emulates a CPU.

    Raises SpecError for an unknown CPU, HostError if its qemu loads no plugins, there is no
    compiler, or the plugin does not compile.
    """
    # The name covers all that the binary depends on, so an update of edgepack, qemu or the
    # compiler's name compiles a new plugin beside the old one.
    qemu = require_qemu(find(cpu))
    interface = _interface(qemu)
    compiler = _compiler()
    digest = hashlib.sha256(f"{platform.machine()} {interface} {compiler}".encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    name = f"instructions-{digest.hexdigest()[:16]}"
    path = default_folder() / EMULATOR / name / "plugin.so"
    if not os.path.isfile(path):  # noqa: PTH113  # as in `Sysroot.prepared`
        _compile(compiler, interface, path)
    return path


def countable(cpu: str) -> HostError | None:
    """Return the error that prevents counting on a CPU; None if there is none."""
    try:
        _interface(require_qemu(find(cpu)))
        _compiler()
    except HostError as error:
        return error
    return None


def _compiler() -> str:
    """Return the host's C compiler; $CC is ignored, since it may be a cross compiler."""
    path = next(filter(None, map(shutil.which, COMPILERS)), None)
    if path is None:
        raise HostError(
            "compiler-missing",
            "the plugin that counts instructions cannot be compiled",
            why="there is no C compiler on PATH: " + ", ".join(COMPILERS),
            hint=INSTALL_COMPILER,
        )
    return path


@cache
def _interface(qemu: str) -> int:
    """Return the version of qemu's plugin interface. Raises HostError if it has none."""
    if "-plugin " not in _output(qemu, "-h"):
        raise HostError(
            "qemu-without-plugins",
            f"{qemu} cannot count instructions",
            why="it was built without plugins, as every static build is, including Debian 13's "
            "qemu-user",
            hint="put a qemu built with --enable-plugins on PATH, such as Debian 12's",
        )
    version = re.search(r"version (\d+)\.", _output(qemu, "--version"))
    if version and int(version[1]) >= INTERFACE_2:
        return 2
    return 1


def _output(*command: str) -> str:
    """Return a program's output and ignore its exit status, as `qemu -h` does not exit with 0."""
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


def _compile(compiler: str, interface: int, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(path, error) from error
    with files.temporary_beside(path) as temporary:
        version = f"-DPLUGIN_VERSION={interface}"
        done = subprocess.run(
            [compiler, *FLAGS, version, "-o", str(temporary), str(SOURCES[0])],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise HostError(
                "plugin-failed",
                "the plugin that counts instructions does not compile",
                why="\n".join([f"{compiler} failed: {done.returncode}", *lines[:6]]),
                hint=INSTALL_COMPILER,
            )
        files.publish(temporary, path)
