"""The cache of stages, by content: a repeated or a killed build takes what is unchanged.

A key is the stage's name with everything that decides its result: digests of what went in, the
options, the versions of the libraries that compute it, and edgepack's own code. Whatever differs
misses. An entry appears by one rename, complete, and its files are hashed when it is taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from edgepack import files
from edgepack.errors import HostError

ENTRY = "entry.json"
LOCK = "lock"
EMULATOR = "emulator"
OTHER_FOLDER = "set EDGEPACK_CACHE to a folder that may be written"
# The libraries whose versions decide what a stage computes.
LIBRARIES = (
    "accelerate",
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
    """Return $EDGEPACK_CACHE, else edgepack's folder in the user's cache. Raises HostError."""
    given = os.environ.get("EDGEPACK_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "edgepack"
    except RuntimeError as error:
        raise HostError(
            "home-missing",
            "this user has no home folder for the cache",
            why=str(error),
            hint=OTHER_FOLDER,
        ) from error


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
        with self._writing(), files.new_folder(place, ENTRY, replace=True) as work:
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
        return Entry(place, dict(document))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the cache where it cannot be written, not the entry."""
        try:
            yield
        except HostError as error:
            if error.code != "output-unwritable":
                raise
            raise HostError(
                error.code,
                f"the cache cannot be written: {self.folder}",
                why=error.why,
                hint=OTHER_FOLDER,
            ) from error

    @contextmanager
    def workplace(self, stage: str, key: str) -> Iterator[Path]:
        """A folder for what a long stage leaves on its way: a killed build finds it again.

        It goes when the stage ends without an exception. Where another build is in it, and for a
        build that computes everything anew, it is a temporary one. Raises HostError.
        """
        place = self.folder / "stages" / stage
        work = place / f".work-{key}"
        with ExitStack() as stack:
            try:
                place.mkdir(parents=True, exist_ok=True)
                if self.refresh or not _take(work, stack):
                    work = Path(
                        stack.enter_context(tempfile.TemporaryDirectory(dir=place, prefix=".work-"))
                    )
            except OSError as error:
                raise files.unwritable(work, error) from error
            yield work
            shutil.rmtree(work, ignore_errors=True)

    def entries(self) -> list[Path]:
        """Folders of all entries."""
        return [path for path in self._folders() if not path.name.startswith(".")]

    def emulator(self) -> list[Path]:
        """What `edgepack emulator prepare` put here, which is no stage's."""
        return sorted((self.folder / EMULATOR).glob("*"))

    def _folders(self) -> list[Path]:
        return sorted((self.folder / "stages").glob("*/*"))

    def size(self) -> int:
        """Bytes of all stages."""
        return sum(map(bytes_of, self._folders()))

    def clean(self, older_than_days: float = 0.0, *, emulator: bool = False) -> tuple[int, int]:
        """Delete entries not used for so many days; returns how many, and their bytes.

        What killed builds left half-written goes too, once no running one can own it. The emulator
        was a long download and stays, unless `emulator` says otherwise; it is as old as its
        preparation.
        """
        now = time.time()
        limit = now - older_than_days * 86400
        kept = [*self._folders(), *(self.emulator() if emulator else ())]
        old = [p for p in kept if not p.name.startswith(".") and _modified(p) <= limit]
        abandoned = [
            path
            for path in kept
            if path.name.startswith(".")
            and _modified(path) <= min(limit, now - files.ABANDONED)
            and not _in_use(path)
        ]
        freed = sum(map(bytes_of, old + abandoned))
        for folder in old:
            _remove(folder)
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old), freed


def _take(folder: Path, stack: ExitStack) -> bool:
    """Whether a folder is this build's, until the stack is closed; it is made where need be."""
    folder.mkdir(exist_ok=True)
    lock = stack.enter_context((folder / LOCK).open("ab"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(folder: Path) -> bool:
    """Whether a running build works in a folder."""
    with ExitStack() as stack:
        return (folder / LOCK).exists() and not _take(folder, stack)


def _modified(path: Path) -> float:
    """When a folder was last used; never, where another process deleted it meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    total = 0
    for one in (path, *path.rglob("*")):
        # Another process may delete the entry meanwhile.
        with suppress(FileNotFoundError):
            found = one.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _remove(folder: Path) -> None:
    # Renamed first: a build that looks meanwhile finds the whole entry or none.
    gone = folder.with_name(f".gone-{os.getpid()}-{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()
