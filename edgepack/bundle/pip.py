"""Resolving and downloading wheels for another machine with pip.

pip runs with the user's configuration (indexes, proxies, certificates), takes wheels only, so that
no code of a package runs here, and checks all hashes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from edgepack import files
from edgepack.errors import HostError
from edgepack.spec.target import Target


class Metadata(TypedDict):
    """Core metadata of a package; a requirement may have a marker: `x>=1; os_name == 'nt'`."""

    name: str
    version: str
    requires_dist: NotRequired[list[str]]


class ArchiveInfo(TypedDict):
    """File that pip would download; `hashes` has the key sha256."""

    hashes: dict[str, str]


class DownloadInfo(TypedDict):
    """Origin of a package."""

    archive_info: ArchiveInfo


class Package(TypedDict):
    """Package in pip's installation report; the keys that are read here."""

    metadata: Metadata
    download_info: DownloadInfo


# Messages of pip when it cannot reach an index.
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
    r"|Connection refused|Network is unreachable|Temporary failure in name resolution"
)
NONE = re.compile(r"No matching distribution found for (\S+)")


def report(target: Target, requirements: Sequence[str]) -> list[Package]:
    """Return the packages that pip would install on a target's device, from its report.

    pip evaluates environment markers for this host. Raises HostError if it finds no solution.
    """
    with files.temporary_folder() as folder:
        path = folder / "report.json"
        _pip(
            target,
            ("install", "--dry-run", "--ignore-installed", "--report", str(path)),
            # pip demands a folder for another platform, but does not write to it in a dry run.
            ("--target", str(folder / "site"), *requirements),
        )
        entries: list[Package] = json.loads(path.read_text(encoding="utf-8"))["install"]
        return entries


def download(target: Target, requirements: Path, folder: Path) -> None:
    """Fetch the wheels of a requirements.txt that pins all versions and hashes."""
    _pip(
        target,
        ("download", "--no-deps", "--require-hashes", "--dest", str(folder)),
        ("--requirement", str(requirements)),
    )


def _pip(target: Target, command: Sequence[str], arguments: Sequence[str]) -> None:
    """Run pip for the device's platform. Raises HostError if it fails."""
    platforms: list[str] = []
    for name in target.wheel_platforms:
        platforms += ["--platform", name]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *command),
            # pip demands this for another platform, since it cannot build from source there.
            *("--only-binary", ":all:", "--implementation", "cp"),
            *("--python-version", target.wheel_python),
            *platforms,
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


def _failed(target: Target, output: str) -> HostError:
    # The last lines of pip are notices; its errors come first, and retries say why it is offline:
    #   WARNING: Retrying (Retry(total=4, ...)) after connection broken by 'NewConnectionError(...
    #   ERROR: No matching distribution found for numpy==9.9
    #   [notice] A new release of pip is available: 24.0 -> 24.1
    lines, errors = [], []
    for line in map(str.strip, output.splitlines()):
        lines.append(line)
        if line.startswith("ERROR") or OFFLINE.search(line):
            errors.append(line)
    why = "\n".join((errors or lines)[-4:])[:2000]
    platform = f"Python {target.wheel_python} on {', '.join(target.wheel_platforms)}"
    missing = NONE.search(output)
    if "No module named pip" in output or "no such option" in output:
        return HostError(
            "pip-missing",
            "--wheels needs pip 22.2 or newer",
            why=why,
            hint="python -m ensurepip --upgrade; python -m pip install --upgrade pip",
        )
    if OFFLINE.search(output):
        return HostError(
            "wheels-offline",
            f"the wheels for {platform} cannot be fetched",
            why=why,
            hint="check the network, or point pip to a folder of wheels: PIP_NO_INDEX=1 "
            "PIP_FIND_LINKS=FOLDER",
        )
    if missing:
        return HostError(
            "wheels-none",
            f"there is no wheel of {missing.group(1)} for {platform}",
            why=why,
            hint="set another Python or more platforms under [wheels] in the target profile",
        )
    return HostError(
        "wheels-failed",
        f"pip did not fetch the wheels for {platform}",
        why=why,
        hint="see pip's messages above",
    )
