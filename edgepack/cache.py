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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edgepack import files
from edgepack.errors import HostError
from edgepack.runtime import temporary

ENTRY = "entry.json"
WORK = ".work-"
# Seconds after which an entry counts as unused, on file systems without locks that could tell.
UNUSED = 86400
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
    """What a stage left in the cache. Its folder stays for as long as this object lives.

    Attributes:
        folder: where its files are.
        document: what it recorded beside them.
        lock: marks the folder as in use.
    """

    folder: Path
    document: Mapping[str, Any]
    lock: files.Lock | None = field(default=None, repr=False, compare=False)


class Cleaned(NamedTuple):
    """The outcome of `Cache.clean`: entries deleted, their bytes, and entries in use."""

    entries: int
    bytes: int
    in_use: int


class Cache:
    """Stages by content.

    Args:
        folder: where it lives.
        refresh: compute everything anew, and replace what is there.
    """

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self.folder = folder
        self.refresh = refresh
        self._in_use: list[Entry] = []

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
            lock = files.in_use(folder)
        except OSError:
            return None
        try:
            entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            intact = entry["digest"] == digest(entry["document"]) and all(
                files.sha256(folder / name) == found for name, found in entry["files"].items()
            )
        except (ValueError, KeyError, OSError):
            intact = False
        if not intact:
            # A damaged entry is of no use to anyone, and in the way of its replacement.
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)
            return None
        # Its age only matters to `clean`; a cache that cannot be written can still be read.
        with suppress(OSError):
            os.utime(folder)
        return Entry(folder, entry["document"], lock)

    def keep_in_use(self, entry: Entry) -> None:
        """Keep an entry's files for as long as this cache object lives."""
        self._in_use.append(entry)

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
        with self._writing(), files.replacing_folder(place) as folder:
            work = folder.path
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
        return Entry(folder.path, dict(document), folder.lock)

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
        work = place / f"{WORK}{key}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = None if self.refresh else _take(work)
            folder = files.LockedFolder(work, lock) if lock else files.LockedFolder.create(place)
        except OSError as error:
            raise files.unwritable(work, error) from error
        try:
            yield folder.path
            folder.remove()
        finally:
            if lock is None:
                folder.remove()
            folder.lock.close()

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

    def clean(self, older_than_days: float = 0.0, *, emulator: bool = False) -> Cleaned:
        """Delete entries not used for so many days, except those that a running build uses.

        What killed builds left unfinished goes too. The emulator was a long download and stays,
        unless `emulator` says otherwise; it is as old as its preparation.
        """
        limit = time.time() - older_than_days * 86400
        for folder in sorted((self.folder / "stages").glob("*")):
            temporary.sweep(str(folder))
        if emulator:
            temporary.sweep(str(self.folder / EMULATOR))
        count = freed = used = 0
        for path in [*self._folders(), *(self.emulator() if emulator else ())]:
            # What has a temporary name still is in use, and no entry yet.
            if path.name.startswith(temporary.PREFIX) or _modified(path) > limit:
                continue
            size = bytes_of(path)
            if not _remove(path):
                used += 1
                continue
            count += not path.name.startswith(".")
            freed += size
        return Cleaned(count, freed, used)


def _take(folder: Path) -> files.Lock | None:
    """The lock of a folder for this build alone, made where need be; None where another has it."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    lock = files.Lock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


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


def _remove(path: Path) -> bool:
    """Delete an entry; False where it is in use."""
    try:
        return temporary.remove_unused(str(path))
    except OSError:
        # Without locks only its age tells, which begins anew whenever it is used.
        if _modified(path) > time.time() - UNUSED:
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
