"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import HostError, SpecError
from edgepack.runtime import temporary
from edgepack.runtime.bundle.whole import file_mode, require_plain
from edgepack.runtime.plain import open_plain as open_plain

CHUNK = 1 << 20
# What a temporary file stands in for, for messages.
_stands_for: dict[Path, Path] = {}


def expand_user(path: str) -> Path:
    """Return a path with `~` expanded; as it is where its user has no home, or is none.

    `Path.expanduser` raises RuntimeError there.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a written file durable, or the renames inside a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(path: Path, inputs: Iterable[Path]) -> None:
    """Find out before hours are spent that `path` can be written, and is none of the inputs.

    Raises HostError or SpecError.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        same = [p for p in inputs if path.exists() and p.exists() and path.samefile(p)]
    except OSError as error:
        raise unwritable(path, error) from error
    if same:
        raise SpecError(
            "output-is-input",
            f"{path} would be overwritten",
            why="it is what the bundle is to be built from",
            hint="--output FILE.edgepack",
        )
    with temporary_beside(path):
        pass


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`, gone afterwards unless it was published.

    Being in the same folder it is on the same file system, so that `publish` is one rename. What
    killed builds left in that folder, for whatever output, is removed first.
    """
    temporary.sweep(str(path.parent))
    try:
        require_plain(str(path))
        name, descriptor = temporary.create_file(str(path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    work = Path(name)
    _stands_for[work] = path
    try:
        yield work
    finally:
        del _stands_for[work]
        work.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A private folder that is gone after the block, and swept by the next run if this is killed.

    Args:
        parent: where it is made; None for the system's folder of temporary files (TMPDIR).
    """
    folder = LockedFolder.create(parent)
    try:
        yield folder.path
    finally:
        folder.remove()


class Lock:
    """A file or folder in use, until this object is closed or nothing refers to it any more.

    Args:
        descriptor: holds the lock; owned by this object.
        private: a folder of this process alone, which is removed with it.
    """

    def __init__(self, descriptor: int, private: Path | None = None) -> None:
        self.descriptor = descriptor
        self._release = weakref.finalize(self, _release, descriptor, private)

    def close(self) -> None:
        """Release the lock, once."""
        self._release()


def _release(descriptor: int, private: Path | None) -> None:
    if private is not None:
        shutil.rmtree(private, ignore_errors=True)
    os.close(descriptor)


def in_use(path: Path) -> Lock:
    """Mark a file or folder as in use, so that no other process removes it.

    Raises FileNotFoundError where it is gone, BlockingIOError where it is being removed.
    """
    return Lock(temporary.hold(str(path)))


@dataclass
class LockedFolder:
    """A folder, and the lock that tells it from those of killed processes."""

    path: Path
    lock: Lock

    @classmethod
    def create(cls, parent: Path | None = None) -> LockedFolder:
        """Make a temporary one, after removing what killed processes left beside it.

        Raises OSError.
        """
        base = str(parent or tempfile.gettempdir())
        temporary.sweep(base)
        name, descriptor = temporary.create_folder(base)
        return cls(Path(name), Lock(descriptor))

    def remove(self) -> None:
        """Remove it, and release its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def keep_private(self) -> None:
        """Leave it where it is until nothing refers to its lock any more."""
        descriptor = os.dup(self.lock.descriptor)
        self.lock.close()
        self.lock = Lock(descriptor, self.path)


@contextmanager
def new_folder(place: Path, mark: str) -> Iterator[Path]:
    """A new folder beside `place`, which takes its place by one rename when the block ends well.

    A whole folder that stands there already stays, as the work of another process that was first.
    Raises HostError where the system refuses to write it.

    Args:
        place: its parents are made where need be.
        mark: the file that a whole folder has, written and synced last.
    """
    with _beside(place) as work:
        yield work.path
        sync(work.path)
        if not (place / mark).is_file():
            shutil.rmtree(place, ignore_errors=True)
        try:
            work.path.rename(place)
        except OSError:
            if not (place / mark).is_file():
                raise
            shutil.rmtree(work.path, ignore_errors=True)
        sync(place.parent)
    work.lock.close()


@contextmanager
def replacing_folder(place: Path) -> Iterator[LockedFolder]:
    """A new folder that takes the place of what stands there when the block ends well.

    Where another process uses what stands there, the new one is private to this process and goes
    with its lock. Raises HostError where the system refuses to write it.
    """
    with _beside(place) as work:
        yield work
        sync(work.path)
        if _replace(work.path, place):
            sync(place.parent)
            work.path = place
        else:
            work.keep_private()


@contextmanager
def _beside(place: Path) -> Iterator[LockedFolder]:
    """A temporary folder beside `place`, removed where the block raises anything."""
    work: LockedFolder | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = LockedFolder.create(place.parent)
        yield work
    except BaseException as error:
        if work is not None:
            work.remove()
        if isinstance(error, OSError):
            raise unwritable(place, error) from error
        raise


def _replace(work: Path, place: Path) -> bool:
    """Rename a folder into a place; False where what stands there is in use."""
    try:
        if not temporary.remove_unused(str(place)):
            return False
    except OSError:
        # Without locks the newer one wins.
        shutil.rmtree(place, ignore_errors=True)
    try:
        work.rename(place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def publish(work: Path, path: Path) -> None:
    """Put a finished file in its place: fsync, rename, fsync of the folder.

    What stood there before stays whole until the rename. Raises HostError.
    """
    try:
        work.chmod(file_mode())
        sync(work)
        work.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises HostError."""
    with temporary_beside(path) as work:
        try:
            work.write_bytes(data)
        except OSError as error:
            raise unwritable(path, error) from error
        publish(work, path)


def unwritable(path: Path, error: OSError) -> HostError:
    """The error for a place that cannot be written."""
    path = _stands_for.get(path, path)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return HostError(
        "disk-full" if full else "output-unwritable",
        f"{path} cannot be written",
        why=error.strerror or str(error),
        hint=_remedy(full, error.errno == errno.EEXIST),
    )


def _remedy(full: bool, taken: bool) -> str:
    if full:
        return "free some space; what stood there before is untouched"
    if taken:
        return "give a file that may be made anew"
    return "check that the folder exists and may be written"


def failed(error: OSError) -> HostError:
    """The error for an operation of the system that failed where nothing else explains it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    where = f" on {error.filename}" if error.filename else ""
    return HostError(
        "disk-full" if full else "host-io",
        f"the system refused an operation{where}",
        why=error.strerror or str(error),
        hint="free some space, also for temporary files (TMPDIR)"
        if full
        else "check the path, its permissions and the disk",
    )
