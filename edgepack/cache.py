"""The cache of stages, by content: a repeated or a killed build takes what is unchanged.

A key is the stage's name with everything that decides its result: digests of what went in, the
options, the versions of the libraries that compute it, and edgepack's own code. Whatever differs
misses. An entry appears by one rename, complete, and its files are hashed when it is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from edgepack import files

ENTRY = "entry.json"
# Seconds after which a half-written entry belongs to no running build: one is written in moments.
ABANDONED = 3600
# The libraries whose versions decide what a stage computes.
LIBRARIES = (
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "pillow",
    "safetensors",
    "torch",
    "transformers",
)


def default_folder() -> Path:
    """$EDGEPACK_CACHE, else edgepack's folder in the user's cache."""
    given = os.environ.get("EDGEPACK_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgepack"


@cache
def tool_versions() -> dict[str, str]:
    """Version of edgepack and of each library that is installed."""
    versions = {}
    for name in ("edgepack", *LIBRARIES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def own_code() -> str:
    """SHA-256 over edgepack's own sources."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document in canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What a stage left in the cache.

    Attributes:
        folder: where its files are.
        document: what it recorded beside them.
    """

    folder: Path
    document: Mapping[str, Any]


class Cache:
    """Stages by content.

    Args:
        folder: where it lives.
        refresh: compute everything anew, and replace what is there.
    """

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self.folder = folder
        self.refresh = refresh

    def key(self, stage: str, parts: Mapping[str, Any]) -> str:
        """The key of a stage's result."""
        return digest(
            {"stage": stage, "parts": parts, "tools": tool_versions(), "code": own_code()}
        )

    def _place(self, stage: str, key: str) -> Path:
        return self.folder / "stages" / stage / key

    def get(self, stage: str, key: str) -> Entry | None:
        """What an earlier build left, proved intact; None where there is nothing."""
        if self.refresh:
            return None
        folder = self._place(stage, key)
        try:
            entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            intact = entry["digest"] == digest(entry["document"]) and all(
                files.sha256(folder / name) == found for name, found in entry["files"].items()
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError):
            intact = False
        if not intact:
            # A damaged entry is of no use to anyone, and in the way of its replacement.
            shutil.rmtree(folder, ignore_errors=True)
            return None
        # Its age only matters to `clean`; a cache that cannot be written can still be read.
        with suppress(OSError):
            os.utime(folder)
        return Entry(folder, entry["document"])

    def put(
        self,
        stage: str,
        key: str,
        contents: Mapping[str, bytes | Callable[[BinaryIO], None]],
        document: Mapping[str, Any],
    ) -> Entry:
        """Keep a stage's files and document. Raises HostError where they cannot be written.

        Args:
            stage: its name.
            key: from `key`.
            contents: by name, the bytes of a file, or what writes them as they come; in order.
            document: read after the files are written.
        """
        place = self._place(stage, key)
        work: Path | None = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=place.parent, prefix=".new-"))
            hashes = {}
            for name, content in contents.items():
                target = work / name
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    with target.open("wb") as file:
                        content(file)
                hashes[name] = files.sha256(target)
                files.sync(target)
            entry = {
                "stage": stage,
                "files": hashes,
                "document": dict(document),
                "digest": digest(document),
            }
            (work / ENTRY).write_text(json.dumps(entry, sort_keys=True), encoding="utf-8")
            files.sync(work / ENTRY)
            files.sync(work)
            shutil.rmtree(place, ignore_errors=True)
            try:
                work.rename(place)
            except OSError:
                # Another build put the same entry there first; theirs is as good.
                if not (place / ENTRY).exists():
                    raise
            files.sync(place.parent)
        except OSError as error:
            raise files.unwritable(place, error) from error
        finally:
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)
        return Entry(place, dict(document))

    def entries(self) -> list[Path]:
        """Folders of all entries."""
        return [path for path in self._folders() if not path.name.startswith(".")]

    def _folders(self) -> list[Path]:
        return sorted((self.folder / "stages").glob("*/*"))

    def size(self) -> int:
        """Bytes of everything in the cache."""
        return sum(_bytes(path) for path in self._folders())

    def clean(self, older_than_days: float = 0.0) -> tuple[int, int]:
        """Delete entries not used for so many days; returns how many, and their bytes.

        What killed builds left half-written goes too, once no running one can own it.
        """
        now = time.time()
        limit = now - older_than_days * 86400
        old = [path for path in self.entries() if _modified(path) <= limit]
        abandoned = [
            path
            for path in self._folders()
            if path.name.startswith(".") and _modified(path) <= min(limit, now - ABANDONED)
        ]
        freed = sum(map(_bytes, old + abandoned))
        for folder in old:
            _remove(folder)
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old), freed


def _modified(path: Path) -> float:
    """When a folder was last used; never, where another process deleted it meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # Another process may delete the entry meanwhile.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _remove(folder: Path) -> None:
    # Renamed first: a build that looks meanwhile finds the whole entry or none.
    gone = folder.with_name(f".gone-{os.getpid()}-{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone)
