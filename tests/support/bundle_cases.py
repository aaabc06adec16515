"""Bundles that somebody changed and made consistent again, and keys to sign bundles with."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgepack.runtime.bundle.index import content_digest
from edgepack.runtime.strict_json import encode

EPOCH = (1980, 1, 1, 0, 0, 0)
REPORT = "report/report.json"


def listed(entries: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """Return what an index lists of files."""
    return {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in entries.items()
    }


def reseal(
    source: Path,
    path: Path,
    changes: Mapping[str, bytes],
    *,
    seal: bool = True,
    index: dict[str, Any] | None = None,
) -> None:
    """Write a bundle with other files in it, in canonical form.

    Args:
        source: the bundle to start from.
        path: where to.
        changes: the files that are new or other, by name.
        seal: whether the index agrees with them, so that no hash inside tells.
        index: the index to write; None for the bundle's own.
    """
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    own = json.loads(entries.pop("bundle.json"))
    index = index or own
    entries.update(changes)
    if seal:
        index["files"] = listed(entries)
        index["content_digest"] = content_digest(index)
        if REPORT in entries and REPORT not in changes:
            report = json.loads(entries[REPORT])
            report["bundle"]["content_digest"] = index["content_digest"]
            entries[REPORT] = encode(report)
            index["files"] = listed(entries)
    first = {"__main__.py": entries.pop("__main__.py"), "bundle.json": encode(index)}
    write_entries(path, {**first, **entries})


def write_entries(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write a zip in a bundle's canonical form."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def rewrite_index(source: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a bundle whose index somebody changed, with the digest that fits the change."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(entries["bundle.json"])
    change(index)
    index["content_digest"] = content_digest(index)
    entries["bundle.json"] = encode(index)
    write_entries(path, entries)


@dataclass(frozen=True)
class Keys:
    """Keys of OpenSSH, without passphrases.

    Attributes:
        key: the builder's.
        other: somebody else's.
        signers: the list of accepted keys, with the builder's alone.
    """

    key: Path
    other: Path
    signers: Path

    def verify(self, bundle: Path) -> subprocess.CompletedProcess[str]:
        """Check the signature beside a bundle as a device does, with OpenSSH alone."""
        with bundle.open("rb") as data:
            return subprocess.run(
                ["ssh-keygen", "-Y", "verify", "-f", self.signers, "-I", "builder@example.org",
                 "-n", "edgepack", "-s", f"{bundle}.sig"],
                stdin=data, capture_output=True, text=True,
            )  # fmt: skip


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: apt-get install openssh-client")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("key", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name]
        subprocess.run(command, check=True)
    public = (folder / "key.pub").read_text()
    (folder / "signers").write_text(f"builder@example.org {public}")
    return Keys(folder / "key", folder / "other", folder / "signers")


def entry(name: str) -> zipfile.ZipInfo:
    """An entry as a bundle has it."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info


def run_bundle(path: Path, *arguments: str, python: str = sys.executable):
    """Run a bundle as a user would, in a process of its own."""
    return subprocess.run(
        [python, str(path), *arguments], capture_output=True, text=True, timeout=120
    )


def entry_names(path: Path) -> dict[str, int]:
    """Return the size of every entry of a bundle, by name."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}
