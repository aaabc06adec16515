"""A processor that is not here, emulated by qemu: its answers, never its speed.

An x86-64 CPU runs this host's own Python and packages. An ARM CPU runs an aarch64 Python that
`edgepack emulator prepare` put into the cache; nothing is downloaded unless that is asked for.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from edgepack import files
from edgepack.device.cpus import CPUS, Cpu, find
from edgepack.device.isolated import Isolated
from edgepack.device.local import installed
from edgepack.device.sysroot import PREPARE, Sysroot, sysroot
from edgepack.device.sysroot import prepare as prepare_sysroot
from edgepack.errors import HostError
from edgepack.ledger import Ledger
from edgepack.runtime.device.machine import describe

PROGRAMS = {"x86_64": "qemu-x86_64", "aarch64": "qemu-aarch64"}


class Emulated(Isolated):
    """An emulated CPU as a device.

    Args:
        cpu: a key of CPUS.
        options: further options of qemu.
        runs_bundle: execute the loader inside the bundle; see `Isolated`.

    Raises SpecError where there is no such CPU, HostError where qemu is missing or the emulator
    is not prepared.
    """

    emulated = True

    def __init__(self, cpu: str, options: Sequence[str] = (), *, runs_bundle: bool = False) -> None:
        found = find(cpu)
        qemu = require_qemu(found)
        prepared = _prepared(found)
        packages = prepared.packages if prepared else installed()
        super().__init__(cpu, (), packages, runs_bundle=runs_bundle)
        prefix = self.folder / "prefix"
        prefix.mkdir()
        found.write(prefix, os.cpu_count() or 1)
        if prepared:
            self._in_use = files.in_use(prepared.folder)
            prepared.link(prefix)
        python = str(prepared.python) if prepared else sys.executable
        self.interpreter = (qemu, *options, "-cpu", found.model, "-L", str(prefix), python)


def require_qemu(cpu: Cpu) -> str:
    """The emulator of a CPU's instructions. Raises HostError where there is none."""
    program = PROGRAMS[cpu.arch]
    qemu = shutil.which(program) or shutil.which(f"{program}-static")
    if qemu is None:
        raise HostError(
            "qemu-missing",
            f"{cpu.name} cannot be emulated on this machine",
            why=f"there is no {program} on PATH",
            hint="apt-get install qemu-user",
        )
    if cpu.arch == "x86_64" and describe()["arch"] != "x86_64":
        raise HostError(
            "emulator-host",
            f"{cpu.name} cannot be emulated on this machine",
            why="an x86-64 CPU runs the host's own Python, and this host is " + describe()["arch"],
            hint="emulate it on an x86-64 machine",
        )
    return qemu


def _prepared(cpu: Cpu) -> Sysroot | None:
    """The Python of a CPU's architecture; None where the host's own runs on it."""
    if cpu.arch == "x86_64":
        return None
    found = sysroot()
    if not found.prepared:
        raise HostError(
            "emulator-missing",
            f"the Python that runs on {cpu.name} is not prepared",
            why=f"there is no {found.folder}",
            hint=f"{PREPARE} {cpu.name}",
        )
    return found


def ready(cpu: str) -> HostError | None:
    """Why a CPU cannot be emulated here; None where it can."""
    try:
        require_qemu(find(cpu))
        _prepared(find(cpu))
    except HostError as error:
        return error
    return None


def prepare(cpus: Iterable[str], ledger: Ledger) -> None:
    """Make sure that CPUs can be emulated here; downloads what is missing.

    Raises SpecError where a CPU is unknown, HostError where one cannot be prepared.
    """
    needed = [find(cpu) for cpu in cpus] or list(CPUS.values())
    emulators = {cpu.arch: require_qemu(cpu) for cpu in needed}
    if "aarch64" in emulators:
        prepare_sysroot(emulators["aarch64"], ledger)
