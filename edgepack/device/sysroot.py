"""Preparation of an aarch64 Python with numpy and onnxruntime in the cache, without root.

Debian's arm64 packages of Python are unpacked beside the aarch64 wheels of the same numpy and
onnxruntime versions as this host's, so that any difference in their answers comes from the
processor. apt-get checks the packages' signatures; the host's own package state is not touched. The
folder appears by one rename, after its Python has imported both packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgepack import files
from edgepack.cache import EMULATOR, default_folder
from edgepack.device.cpus import CPUS
from edgepack.device.packages import PACKAGES, list_decoders
from edgepack.errors import HostError
from edgepack.ledger import Ledger

DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PREPARE = "edgepack emulator prepare"
# Written last, so that a folder with this file is complete.
MARK = "emulator.json"
# Replaces all of apt's settings except /etc/apt, with the mirrors and the trusted keys.
_APT = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Debug::NoLocking "true";
"""
# Imports the loader's imports, so that they are compiled for later runs.
_PROBE = (
    "import argparse, json, platform, tempfile, zipfile, numpy, onnxruntime; "
    "print(json.dumps({'python': platform.python_version(), 'numpy': numpy.__version__, "
    "'onnxruntime': onnxruntime.__version__, 'arch': platform.machine()}))"
)


@dataclass(frozen=True)
class Sysroot:
    """Folder with an aarch64 Python (`root`) and its packages (`site`)."""

    folder: Path

    @property
    def prepared(self) -> bool:
        """Return True if the folder exists and is complete."""
        # Path.is_file raises PermissionError if a parent folder is not readable.
        return os.path.isfile(self.folder / MARK)  # noqa: PTH113

    @property
    def python(self) -> Path:
        """Return the path of the aarch64 interpreter."""
        return self.folder / "root" / "usr" / "bin" / "python3"

    def list_files(self, packages: Iterable[str]) -> list[Path]:
        """List the files and folders of packages, as `packages.list_files` does for this host.

        Raises HostError if one is not prepared in this host's version.
        """
        folders = []
        for package in packages:
            folder = self.find_folder(package)
            if not folder.is_dir():
                raise HostError(
                    "emulator-missing",
                    f"the package {package} is not prepared for emulated aarch64 CPUs",
                    why=f"the bundle needs it, and there is no {folder}",
                    hint=f"{PREPARE} cortex-a53",
                )
            folders.append(folder)
        entries: list[Path] = []
        # numpy and onnxruntime share one folder.
        for folder in dict.fromkeys(folders):
            entries += sorted(folder.iterdir())
        return entries

    def find_folder(self, package: str) -> Path:
        """Return the folder of a package, whether it exists or not."""
        if package in PACKAGES:
            return self.folder / "site"
        # Another version on this host gets another folder: decoders/pillow-13.0.0.
        version = list_decoders().get(package, "missing")
        return self.folder / "decoders" / f"{package}-{version}"

    def link(self, prefix: Path) -> None:
        """Link /usr and /lib of the emulated Python below a prefix for qemu."""
        for name in ("usr", "lib"):
            (prefix / name).symlink_to(self.folder / "root" / name)


def versions() -> dict[str, str]:
    """Return this host's versions of the packages that the loader needs."""
    return {package: metadata.version(package) for package in PACKAGES}


def sysroot() -> Sysroot:
    """Return the aarch64 Python for this host's versions, prepared or not."""
    # aarch64-numpy-2.2.6-onnxruntime-1.23.2: another version on this host gets another folder.
    name = "-".join(["aarch64", *(f"{name}-{version}" for name, version in versions().items())])
    return Sysroot(default_folder() / EMULATOR / name)


def prepare(qemu: str, ledger: Ledger) -> Sysroot:
    """Download and unpack the aarch64 Python, unless it is already prepared.

    Args:
        qemu: path of the emulator of aarch64.
        ledger: records a stage for each step.

    Raises HostError if this host lacks a program, a download fails, or the Python does not run.
    """
    target = sysroot()
    if target.prepared:
        _add_decoders(target, ledger)
        return target
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(
                "apt-missing",
                "the emulated Python comes from Debian's packages, which this host cannot unpack",
                why=f"there is no {program} on PATH",
                hint="prepare it on Debian or in a container of it, and set EDGEPACK_CACHE here "
                "to that cache folder",
            )
    with files.new_folder(target.folder, MARK) as work:
        _fill(Sysroot(work), qemu, ledger)
    _add_decoders(target, ledger)
    return target


def _add_decoders(target: Sysroot, ledger: Ledger) -> None:
    """Download the decoders that this host has and the folder lacks, in this host's versions."""
    absent = {}
    for name, version in list_decoders().items():
        if not target.find_folder(name).is_dir():
            absent[name] = version
    if not absent:
        return
    with ledger.stage("decoders") as stage:
        for name, version in absent.items():
            # The folder appears by one rename, and so is whole.
            with files.temporary_folder(target.folder) as work:
                _install_wheels(target, {name: version}, work / "site")
                folder = target.find_folder(name)
                folder.parent.mkdir(exist_ok=True)
                (work / "site").rename(folder)
            stage.note(f"{name} {version}")


def _fill(new: Sysroot, qemu: str, ledger: Ledger) -> None:
    with (
        ledger.stage("packages") as stage,
        files.temporary_folder(new.folder) as apt,
    ):
        debs = _download(apt)
        stage.set(bytes=sum(deb.stat().st_size for deb in debs))
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), str(new.folder / "root")])
        stage.note(f"{len(debs)} arm64 packages of Debian unpacked")
    if not (new.folder / "root" / "lib").exists():
        # Debian 13 and later ship this link in a package that Python does not depend on.
        (new.folder / "root" / "lib").symlink_to("usr/lib")
    with ledger.stage("wheels") as stage:
        _install_wheels(new, versions(), new.folder / "site")
        stage.note(", ".join(f"{name} {version}" for name, version in versions().items()))
    with ledger.stage("first run") as stage:
        facts = _run_first(new, qemu)
        stage.note(f"Python {facts['python']} for {facts['arch']} runs")
    document = {**facts, "packages": [deb.name for deb in debs]}
    mark = new.folder / MARK
    mark.write_text(json.dumps(document, sort_keys=True, indent=1), encoding="utf-8")
    files.sync(mark)


def _download(apt: Path) -> list[Path]:
    archives = apt / "cache" / "archives"
    for folder in (archives / "partial", apt / "state" / "lists" / "partial"):
        folder.mkdir(parents=True)
    (apt / "status").touch()
    configuration = apt / "apt.conf"
    configuration.write_text(_APT.format(folder=apt), encoding="utf-8")
    environment = {"APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
    # `update` succeeds even if it reached no mirror, and then `install` knows no package; so its
    # messages are passed on to the error of `install`.
    updated = _run(["apt-get", "-qq", "update"], environment)
    install = ["apt-get", "-qq", "-y", "--download-only", "install", *DEBIAN]
    _run(install, environment, before=updated.stderr)
    return sorted(archives.glob("*.deb"))


def _install_wheels(new: Sysroot, packages: Mapping[str, str], site: Path) -> None:
    """Install the aarch64 wheels of packages, by name and version, into a folder."""
    # Debian's python3 is a link to "python3.11".
    version = new.python.readlink().name.removeprefix("python")
    _run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"),
            *("--target", str(site), "--no-deps", "--no-compile"),
            *("--only-binary", ":all:", "--implementation", "cp", "--python-version", version),
            *(f"--platform={name}_aarch64" for name in PLATFORMS),
            *(f"{name}=={release}" for name, release in packages.items()),
        ]
    )
    shutil.rmtree(site / "bin", ignore_errors=True)


def _run_first(new: Sysroot, qemu: str) -> dict[str, str]:
    """Import the loader's imports under emulation and return their versions."""
    # On cortex-a53, the CPU with the fewest instruction sets: a wheel that runs there runs on all.
    cpu = CPUS["cortex-a53"]
    with files.temporary_folder() as prefix:
        new.link(prefix)
        cpu.write(prefix, 1)
        command = [qemu, "-cpu", cpu.model, "-L", str(prefix), str(new.python), "-S", "-s"]
        done = _run([*command, "-c", _PROBE], {"PYTHONPATH": str(new.folder / "site")})
    facts: dict[str, str] = json.loads(done.stdout)
    return facts


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None, *, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program. Raises HostError with `before` and the output if it fails."""
    done = subprocess.run(
        list(command),
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        output = before + done.stdout + done.stderr
        lines = [line for line in output.splitlines() if line.strip()]
        raise HostError(
            "emulator-failed",
            "the emulated Python could not be prepared; no files were left behind",
            why="\n".join([f"{_summarize(command)} failed: {done.returncode}", *lines[-6:]]),
            hint="the preparation needs the network, Debian's arm64 packages and the wheels of "
            "this host's numpy and onnxruntime",
        )
    return done


def _summarize(command: Sequence[str]) -> str:
    """Return the program and its subcommand, without options and paths: "apt-get update"."""
    words = [word for word in command[1:] if re.fullmatch(r"[a-z]{3,}", word)]
    return " ".join([Path(command[0]).name, *words[:2]])
