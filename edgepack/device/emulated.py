"""Devices emulated by qemu, which give a processor's answers but never its speed.

An x86-64 CPU runs this host's own Python and packages. An ARM CPU runs an aarch64 Python that
`edgepack emulator prepare` put into the cache; only that command downloads anything.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from edgepack import files
from edgepack.device.cpus import CPUS, Cpu, find
from edgepack.device.isolated import Isolated
from edgepack.device.packages import find_packages, list_files
from edgepack.device.sysroot import PREPARE, Sysroot, sysroot
from edgepack.device.sysroot import prepare as prepare_sysroot
from edgepack.errors import HostError
from edgepack.ledger import Ledger
from edgepack.runtime.device.machine import describe

PROGRAMS = {"x86_64": "qemu-x86_64", "aarch64": "qemu-aarch64"}


class Emulated(Isolated):
    """Emulated CPU as a device.

    Args:
        cpu: a key of CPUS.
        options: further options of qemu.
        runs_bundle: execute the loader inside the bundle; see `Isolated`.

    Raises SpecError for an unknown CPU, HostError if qemu is missing or the emulator is not
    prepared.
    """

    emulated = True

    def __init__(self, cpu: str, options: Sequence[str] = (), *, runs_bundle: bool = False) -> None:
        processor = find(cpu)
        qemu = require_qemu(processor)
        foreign = _require_sysroot(processor)
        packages = foreign.list_files if foreign else list_files
        super().__init__(cpu, (), packages, runs_bundle=runs_bundle)
        prefix = self.folder / "prefix"
        prefix.mkdir()
        processor.write(prefix, os.cpu_count() or 1)
        python = sys.executable
        if foreign:
            # Held until this device is gone, so that `cache clean --emulator` leaves the folder.
            self._in_use = files.mark_in_use(foreign.folder)
            foreign.link(prefix)
            python = str(foreign.python)
        # qemu-aarch64 -cpu cortex-a53 -L PREFIX ROOT/usr/bin/python3
        self.interpreter = (qemu, *options, "-cpu", processor.model, "-L", str(prefix), python)


def require_qemu(cpu: Cpu) -> str:
    """Return the path of the qemu that emulates a CPU. Raises HostError if there is none."""
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


def _require_sysroot(cpu: Cpu) -> Sysroot | None:
    """Return the Python of a CPU's architecture; None if the host's own Python runs on it."""
    if cpu.arch == "x86_64":
        return None
    foreign = sysroot()
    if not foreign.prepared:
        raise HostError(
            "emulator-missing",
            f"the Python that runs on {cpu.name} is not prepared",
            why=f"there is no {foreign.folder}",
            hint=f"{PREPARE} {cpu.name}",
        )
    return foreign


def ready(cpu: str, bundle: str = "") -> HostError | None:
    """Return the error that prevents this host from emulating a CPU; None if there is none.

    Args:
        cpu: a key of CPUS.
        bundle: the bundle to run there, whose packages must be ready too; "" for none.
    """
    try:
        require_qemu(find(cpu))
        foreign = _require_sysroot(find(cpu))
        if foreign is not None and bundle:
            foreign.list_files(find_packages(bundle))
    except HostError as error:
        return error
    return None


def suggest_emulation(bundle: str, arch: str, cpus: Sequence[str] = ()) -> str:
    """Return the command that verifies a bundle on an emulated CPU; "" if this host has none.

    Args:
        bundle: path of the bundle, quoted for a shell.
        arch: architecture of the CPU.
        cpus: names of CPUs to choose from; empty for all.
    """
    for name in cpus or CPUS:
        if CPUS[name].arch != arch:
            continue
        verify = f"edgepack verify {bundle} --emulate {name}"
        fault = ready(name)
        if fault is None:
            return verify
        if fault.code in ("qemu-missing", "emulator-missing"):
            return f"{fault.hint} && {verify}"
    return ""


def prepare(cpus: Iterable[str], ledger: Ledger) -> None:
    """Make CPUs ready for emulation on this host, downloading missing parts.

    Raises SpecError for an unknown CPU, HostError if one cannot be prepared.
    """
    needed = [find(cpu) for cpu in cpus] or list(CPUS.values())
    emulators = {cpu.arch: require_qemu(cpu) for cpu in needed}
    if "aarch64" in emulators:
        prepare_sysroot(emulators["aarch64"], ledger)
