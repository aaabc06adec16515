"""Content-keyed cache of stages: a repeated or interrupted build reuses unchanged results.

A key covers the stage's name and everything that decides its result: digests of the inputs, the
options, the versions of the libraries, and edgepack's code. Any difference is a miss. An entry
appears complete, by one rename, and its files are hashed again on every hit.
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
# Seconds after which an entry counts as unused on file systems without locks.
UNUSED = 86400
EMULATOR = "emulator"
# Seconds of the stages of earlier builds, see `edgepack.forecast`; they are no entries.
TIMINGS = "timings"
OTHER_FOLDER = "set EDGEPACK_CACHE to a writable folder"
# Libraries whose versions influence the results of stages.
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
    configured = os.environ.get("EDGEPACK_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        # `Path.home` raises if the user is in no passwd file, as in some containers.
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError as error:
        raise HostError(
            "home-missing",
            "this user has no home folder for the cache",
            why=str(error),
            hint=OTHER_FOLDER,
        ) from error
    return folder / "edgepack"


def tool_versions() -> dict[str, str]:
    """Return the versions of edgepack and of each installed library."""
    return dict(_read_versions())


@cache
def _read_versions() -> dict[str, str]:
    versions = {}
    for name in ("edgepack", *LIBRARIES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def hash_own_code() -> str:
    """Return the SHA-256 of edgepack's sources."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    # Names count as well: moving code between files is a change. \0 separates name and contents.
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest(document: Mapping[str, object]) -> str:
    """Return the SHA-256 of a JSON document in canonical form."""
    # Sorted and without spaces, so that {"b": 1, "a": 2} and {"a": 2, "b": 1} have one digest.
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """Cached result of a stage. Its folder exists at least as long as this object.

    Attributes:
        folder: contains its files.
        document: JSON values that the stage recorded.
        lock: marks the folder as in use.
    """

    folder: Path
    document: Mapping[str, Any]
    lock: files.Lock | None = field(default=None, repr=False, compare=False)


class Cleaned(NamedTuple):
    """Result of `Cache.clean`: entries deleted, their bytes, and entries in use."""

    entries: int
    bytes: int
    in_use: int


class Cache:
    """Store of stage results by content key.

    Args:
        folder: the cache's folder.
        refresh: miss always, and replace existing entries.
    """

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self.folder = folder
        self.refresh = refresh
        self._in_use: list[Entry] = []

    def key(self, stage: str, parts: Mapping[str, object]) -> str:
        """Return the key of a stage's result."""
        return digest(
            {"stage": stage, "parts": parts, "tools": tool_versions(), "code": hash_own_code()}
        )

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / "stages" / stage / key

    def get(self, stage: str, key: str) -> Entry | None:
        """Return the intact entry of an earlier build, None on a miss."""
        if self.refresh:
            return None
        folder = self._path(stage, key)
        # Lock before reading, so that `clean` in another process cannot delete files in between.
        try:
            lock = files.mark_in_use(folder)
        except OSError:
            return None
        try:
            entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            intact = entry["digest"] == digest(entry["document"]) and all(
                files.sha256(folder / name) == checksum for name, checksum in entry["files"].items()
            )
        except (ValueError, KeyError, OSError):
            intact = False
        if not intact:
            # A damaged entry is useless, and would be in the way of its replacement.
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)
            return None
        # The age only matters to `clean`, and a read-only cache can still be read.
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
        document: Mapping[str, object],
    ) -> Entry:
        """Store a stage's files and document. Raises HostError if they cannot be written.

        Args:
            stage: name of the stage.
            key: from `key`.
            contents: by name, the bytes of a file or a function that writes it; in order.
            document: JSON values; read after the files are written, so that writers may add to it.
        """
        path = self._path(stage, key)
        with self._writing(), files.replacing_folder(path) as folder:
            work = folder.path
            hashes = {}
            for name, content in contents.items():
                file_path = work / name
                if isinstance(content, bytes):
                    file_path.write_bytes(content)
                else:
                    with file_path.open("wb") as file:
                        content(file)
                # Hash the file on disk, not the bytes: a writer may stream any amount.
                hashes[name] = files.sha256(file_path)
                files.sync(file_path)
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
        """Report the cache instead of the entry as not writable."""
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
    def checkpoint_folder(self, stage: str, key: str) -> Iterator[Path]:
        """Provide a folder for checkpoints of a long stage, which an interrupted build finds again.

        It is removed when the stage ends without an exception. If another build uses it, or if this
        one refreshes the cache, the folder is a temporary one instead. Raises HostError.
        """
        stage_folder = self.folder / "stages" / stage
        work = stage_folder / f"{WORK}{key}"
        try:
            stage_folder.mkdir(parents=True, exist_ok=True)
            lock = None
            if not self.refresh:
                lock = _lock_alone(work)
            if lock:
                folder = files.LockedFolder(work, lock)
            else:
                folder = files.LockedFolder.create(stage_folder)
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
        """Return the folders of all entries."""
        return [path for path in self._folders() if not path.name.startswith(".")]

    def emulator(self) -> list[Path]:
        """Return the files of `edgepack emulator prepare`, which belong to no stage."""
        return sorted((self.folder / EMULATOR).glob("*"))

    def _folders(self) -> list[Path]:
        return sorted((self.folder / "stages").glob("*/*"))

    def size(self) -> int:
        """Return the size of all stages, and of their timings, in bytes."""
        return sum(map(disk_usage, (*self._folders(), *(self.folder / TIMINGS).glob("*"))))

    def clean(self, older_than_days: float = 0.0, *, emulator: bool = False) -> Cleaned:
        """Delete entries that were not used for some days and that no running build uses.

        Unfinished work of killed builds is deleted, too. The emulator, a long download, stays
        unless `emulator` is set; its age counts from its preparation.
        """
        # 7 days at noon on the 15th delete what was last used before noon on the 8th.
        limit = time.time() - older_than_days * 86400
        for folder in sorted((self.folder / "stages").glob("*")):
            temporary.sweep(str(folder))
        if emulator:
            temporary.sweep(str(self.folder / EMULATOR))
        count = freed = used = 0
        for path in sorted((self.folder / TIMINGS).glob("*")):
            if _modified(path) <= limit:
                freed += disk_usage(path)
                path.unlink(missing_ok=True)
        candidates = self._folders()
        if emulator:
            candidates += self.emulator()
        for path in candidates:
            # A temporary name that survived the sweep above is in use, and no entry yet.
            if path.name.startswith(temporary.PREFIX) or _modified(path) > limit:
                continue
            size = disk_usage(path)
            if not _delete(path):
                used += 1
                continue
            # A work folder is deleted like an entry, but is not one.
            count += not path.name.startswith(".")
            freed += size
        return Cleaned(count, freed, used)


def _lock_alone(folder: Path) -> files.Lock | None:
    """Lock a folder exclusively, creating it if necessary; None if another build has it."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    lock = files.Lock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another build may have removed the folder, and made a new one, before the lock was ours.
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


def _modified(path: Path) -> float:
    """Return the time of a folder's last use, infinity if another process has deleted it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def disk_usage(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder."""
    total = 0
    for item in (path, *path.rglob("*")):
        # Another process may delete the entry meanwhile.
        with suppress(FileNotFoundError):
            status = item.lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total


def _delete(path: Path) -> bool:
    """Delete an entry and return True, or return False if it is in use."""
    try:
        return temporary.remove_unused(str(path))
    except OSError:
        # Without locks the age decides; every use resets it.
        if _modified(path) > time.time() - UNUSED:
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
