"""An aarch64 Python with numpy and onnxruntime, prepared in the cache without root.

Debian's arm64 packages of Python are unpacked beside the aarch64 wheels of just the numpy and the
onnxruntime that this host has, so that what differs in their answers is the processor's. apt-get
checks the packages' signatures; the host's own package state is not touched. The folder appears by
one rename, once the Python in it has imported both packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgepack import files
from edgepack.cache import EMULATOR, default_folder
from edgepack.device.cpus import CPUS
from edgepack.device.local import PACKAGES
from edgepack.errors import HostError
from edgepack.ledger import Ledger

DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PREPARE = "edgepack emulator prepare"
# Last into its folder, which is whole if it has one.
MARK = "emulator.json"
# Everything but /etc/apt, which says where Debian is and whose signature to trust.
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
# Imports what the loader imports, which leaves it compiled for the runs to come.
_PROBE = (
    "import argparse, json, platform, tempfile, zipfile, numpy, onnxruntime; "
    "print(json.dumps({'python': platform.python_version(), 'numpy': numpy.__version__, "
    "'onnxruntime': onnxruntime.__version__, 'arch': platform.machine()}))"
)


@dataclass(frozen=True)
class Sysroot:
    """A folder with an aarch64 Python (`root`) and its packages (`site`)."""

    folder: Path

    @property
    def prepared(self) -> bool:
        """Whether it is there, whole."""
        # Not `Path.is_file`, which raises where a folder above may not be looked into.
        return os.path.isfile(self.folder / MARK)  # noqa: PTH113

    @property
    def python(self) -> Path:
        """The aarch64 interpreter."""
        return self.folder / "root" / "usr" / "bin" / "python3"

    @property
    def packages(self) -> list[Path]:
        """What it may import."""
        return sorted((self.folder / "site").iterdir())

    def link(self, prefix: Path) -> None:
        """Put what the emulated Python loads as /usr and /lib below a prefix of qemu's."""
        for name in ("usr", "lib"):
            (prefix / name).symlink_to(self.folder / "root" / name)


def versions() -> dict[str, str]:
    """Versions of the packages that the loader needs, as this host has them."""
    return {package: metadata.version(package) for package in PACKAGES}


def sysroot() -> Sysroot:
    """Where the aarch64 Python for this host's versions stands, or would stand."""
    name = "-".join(["aarch64", *(f"{name}-{version}" for name, version in versions().items())])
    return Sysroot(default_folder() / EMULATOR / name)


def prepare(qemu: str, ledger: Ledger) -> Sysroot:
    """Download and unpack the aarch64 Python, unless it is there already.

    Args:
        qemu: the emulator of aarch64.
        ledger: gets a stage for each step.

    Raises HostError where this host lacks a program, a download fails, or what came does not run.
    """
    found = sysroot()
    if found.prepared:
        return found
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(
                "apt-missing",
                "the emulated Python comes from Debian's packages, which this host cannot unpack",
                why=f"there is no {program} on PATH",
                hint="prepare it on Debian or in a container of it, and set EDGEPACK_CACHE here "
                "to that cache folder",
            )
    with files.new_folder(found.folder, MARK) as work:
        _fill(Sysroot(work), qemu, ledger)
    return found


def _fill(new: Sysroot, qemu: str, ledger: Ledger) -> None:
    with (
        ledger.stage("packages") as stage,
        files.temporary_folder(new.folder) as apt,
    ):
        debs = _download(apt)
        stage.set(bytes=sum(deb.stat().st_size for deb in debs))
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), str(new.folder / "root")])
        stage.note(f"{len(debs)} packages of Debian's arm64, unpacked")
    if not (new.folder / "root" / "lib").exists():
        # Debian 13 and later have the link in a package that a running Python does not need.
        (new.folder / "root" / "lib").symlink_to("usr/lib")
    with ledger.stage("wheels") as stage:
        _wheels(new)
        stage.note(", ".join(f"{name} {version}" for name, version in versions().items()))
    with ledger.stage("first run") as stage:
        found = _first_run(new, qemu)
        stage.note(f"Python {found['python']} for {found['arch']} runs")
    document = {**found, "packages": [deb.name for deb in debs]}
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
    # It ends well also where it reached none of its sources: then no package is known.
    updated = _run(["apt-get", "-qq", "update"], environment)
    install = ["apt-get", "-qq", "-y", "--download-only", "install", *DEBIAN]
    _run(install, environment, before=updated.stderr)
    return sorted(archives.glob("*.deb"))


def _wheels(new: Sysroot) -> None:
    # The link that Debian has as python3: "python3.11".
    version = new.python.readlink().name.removeprefix("python")
    _run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"),
            *("--target", str(new.folder / "site"), "--no-deps", "--no-compile"),
            *("--only-binary", ":all:", "--implementation", "cp", "--python-version", version),
            *(flag for name in PLATFORMS for flag in ("--platform", f"{name}_aarch64")),
            *(f"{name}=={wanted}" for name, wanted in versions().items()),
        ]
    )
    shutil.rmtree(new.folder / "site" / "bin", ignore_errors=True)


def _first_run(new: Sysroot, qemu: str) -> dict[str, str]:
    """Import what the loader imports; returns the versions that came."""
    cpu = CPUS["cortex-a53"]
    with files.temporary_folder() as prefix:
        new.link(prefix)
        cpu.write(prefix, 1)
        command = [qemu, "-cpu", cpu.model, "-L", str(prefix), str(new.python), "-S", "-s"]
        done = _run([*command, "-c", _PROBE], {"PYTHONPATH": str(new.folder / "site")})
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None, *, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program. Raises HostError where it fails, with what was said before, too."""
    done = subprocess.run(
        list(command),
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        said = [line for line in (before + done.stdout + done.stderr).splitlines() if line.strip()]
        raise HostError(
            "emulator-failed",
            "the emulated Python could not be prepared; nothing was left behind",
            why="\n".join([f"{_told(command)} failed: {done.returncode}", *said[-6:]]),
            hint="it needs the network, Debian's arm64 packages and the wheels of this host's "
            "numpy and onnxruntime",
        )
    return done


def _told(command: Sequence[str]) -> str:
    """The program and what it was to do, without its options and paths."""
    words = [word for word in command[1:] if re.fullmatch(r"[a-z]{3,}", word)]
    return " ".join([Path(command[0]).name, *words[:2]])
