"""pip for another machine: what it would install there, and the wheels to fetch.

It is run as the user has set it up (indexes, proxies, certificates), takes wheels alone, so that no
code of a package runs here, and checks every hash that it is given.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepack import files
from edgepack.errors import HostError
from edgepack.spec.target import Target

# What pip says where it cannot reach an index.
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
    r"|Connection refused|Network is unreachable|Temporary failure in name resolution"
)
NONE = re.compile(r"No matching distribution found for (\S+)")


def report(target: Target, asked: Sequence[str]) -> list[dict[str, Any]]:
    """What pip would install on a target's device, as its installation report has it.

    It reads environment markers as this host's. Raises HostError where it finds no such set.
    """
    with files.temporary_folder() as folder:
        written = folder / "report.json"
        _pip(
            target,
            ("install", "--dry-run", "--ignore-installed", "--report", str(written)),
            # For another platform it asks for a folder, and leaves it alone.
            ("--target", str(folder / "site"), *asked),
        )
        found: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))["install"]
        return found


def download(target: Target, requirements: Path, folder: Path) -> None:
    """Fetch the wheels of a requirements.txt in which everything has its version and its hash."""
    _pip(
        target,
        ("download", "--no-deps", "--require-hashes", "--dest", str(folder)),
        ("--requirement", str(requirements)),
    )


def _pip(target: Target, command: Sequence[str], arguments: Sequence[str]) -> None:
    """Run pip for the device's platform. Raises HostError where it fails."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *command),
            *("--only-binary", ":all:", "--implementation", "cp"),
            *("--python-version", target.wheel_python),
            *(flag for name in target.wheel_platforms for flag in ("--platform", name)),
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise _failed(target, done.stdout)


def _failed(target: Target, said: str) -> HostError:
    lines = [line.strip() for line in said.splitlines()]
    told = [line for line in lines if line.startswith("ERROR") or OFFLINE.search(line)]
    why = "\n".join((told or lines)[-4:])[:2000]
    place = f"Python {target.wheel_python} on {', '.join(target.wheel_platforms)}"
    none = NONE.search(said)
    if "No module named pip" in said or "no such option" in said:
        return HostError(
            "pip-missing",
            "--wheels needs pip 22.2 or newer",
            why=why,
            hint="python -m ensurepip --upgrade; python -m pip install --upgrade pip",
        )
    if OFFLINE.search(said):
        return HostError(
            "wheels-offline",
            f"the wheels for {place} cannot be fetched",
            why=why,
            hint="check the network, or give pip a folder of wheels: PIP_NO_INDEX=1 "
            "PIP_FIND_LINKS=FOLDER",
        )
    if none:
        return HostError(
            "wheels-none",
            f"there is no wheel of {none.group(1)} for {place}",
            why=why,
            hint="state another Python or more platforms under [wheels] in the target profile",
        )
    return HostError(
        "wheels-failed",
        f"pip did not fetch the wheels for {place}",
        why=why,
        hint="the lines above are pip's own",
    )
