"""Emulated CPUs: preparing them once, and asking the command line what it says of a bundle on each.

The emulator is kept under `.cache/` between runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack.report import render_matrix
from edgepack.runtime.device import machine
from support import ROOT
from support.build_cases import render_text

KEPT = ROOT / ".cache"
# What this machine may lack; anything else is a fault.
LACKING = ("qemu-missing", "apt-missing")
OFFLINE = re.compile(
    r"Temporary failure|Could not (connect|resolve)|Unable to connect|Failed to fetch"
    r"|NewConnectionError|NameResolutionError|ProxyError|TimeoutError|Connection refused"
    r"|Unable to locate package"
)
HOST = machine.describe()
X86_64 = pytest.mark.skipif(HOST["arch"] != "x86_64", reason="this host is not x86-64")
# What is said of an emulated device.
SPEED = {"seconds", "memory"}


def edgepack(*arguments: str, cache: Path = KEPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgepack", *arguments],
        env={**os.environ, "EDGEPACK_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def prepare(*cpus: str) -> None:
    """`edgepack emulator prepare`; skips, with the reason, where this machine cannot."""
    done = edgepack("emulator", "prepare", *cpus, "--json")
    said = json.loads(done.stdout)
    if "error" in said:
        error = said["error"]
        assert done.returncode == 2
        lacks = error["code"] in LACKING or OFFLINE.search(error["why"])
        assert lacks, done.stderr
        pytest.skip(f"{error['what']}: {error['why'].splitlines()[-1]}")
    assert done.returncode == 0
    assert said == {"ready": list(cpus)}


@pytest.fixture(scope="session")
def arm() -> None:
    """ARM CPUs can be emulated."""
    prepare("cortex-a53")


@pytest.fixture(scope="session")
def x86() -> None:
    """x86-64 CPUs can be emulated."""
    prepare("Haswell", "Skylake-Client")


def fresh(folder: Path) -> Path:
    """A cache that holds the emulator and nothing else."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / "emulator").symlink_to(KEPT / "emulator")
    return cache


def matrix(bundle: Path, *cpus: str) -> tuple[dict[str, dict[str, Any]], str, int]:
    """The columns by device, what the terminal showed, and the exit status."""
    flags = [flag for cpu in cpus for flag in ("--emulate", cpu)]
    done = edgepack("verify", str(bundle), *flags, "--json")
    found = json.loads(done.stdout)
    assert (found["verdict"] == "PASS") == (done.returncode == 0)
    assert [column["name"] for column in found["devices"]] == list(cpus)
    for column in found["devices"]:
        assert column["emulated"] is True
        assert not SPEED & set(column.get("verdict", ()))
    text = render_text(render_matrix, found)
    return {column["name"]: column for column in found["devices"]}, text, done.returncode
