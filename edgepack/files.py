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
from edgepack.runtime.plain import file_mode, require_plain
from edgepack.runtime.plain import open_plain as open_plain

CHUNK = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Final path of each temporary file, for messages.
_targets: dict[Path, Path] = {}


def expand_user(path: str) -> Path:
    """Return a path with `~` expanded, or unchanged if that user or its home does not exist.

    `Path.expanduser` would raise RuntimeError.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a written file to disk, or the renames inside a folder."""
    # A file or a folder; fsync works on a descriptor that is open for reading.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Check before a long build that `path` can be written and is not one of the inputs.

    Raises HostError or SpecError.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # Compare by inode, since two paths may lead to one file through a symbolic link.
        same = [p for p in inputs if path.exists() and p.exists() and path.samefile(p)]
    except OSError as error:
        raise unwritable(path, error) from error
    if same:
        raise SpecError(
            "output-is-input",
            f"{path} would be overwritten",
            why="it is an input of the build",
            hint="--output FILE.edgepack",
        )
    # The only reliable test of permissions and free space is to create a file.
    with temporary_beside(path):
        pass


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Provide a temporary file in the folder of `path`, and delete it unless it was published.

    It is on the same file system as `path`, so that `publish` is one rename. Leftovers of killed
    builds in that folder are removed first.
    """
    temporary.sweep(str(path.parent))
    try:
        require_plain(str(path))
        name, descriptor = temporary.create_file(str(path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    work = Path(name)
    _targets[work] = path
    try:
        yield work
    finally:
        del _targets[work]
        work.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Provide a private folder, and delete it after the block.

    If this process is killed, the next run deletes it.

    Args:
        parent: its parent; None for the system's folder of temporary files (TMPDIR).
    """
    folder = LockedFolder.create(parent)
    try:
        yield folder.path
    finally:
        folder.remove()


class Lock:
    """Lock on a file or folder, until this object is closed or garbage collected.

    Args:
        descriptor: file descriptor with the lock; owned by this object.
        private: a folder of this process alone, removed together with the lock.
    """

    def __init__(self, descriptor: int, private: Path | None = None) -> None:
        self.descriptor = descriptor
        # Also runs at interpreter exit, so no private folder outlives the process.
        self._release = weakref.finalize(self, _release, descriptor, private)

    def close(self) -> None:
        """Release the lock, once."""
        self._release()


def _release(descriptor: int, private: Path | None) -> None:
    if private is not None:
        shutil.rmtree(private, ignore_errors=True)
    os.close(descriptor)


def mark_in_use(path: Path) -> Lock:
    """Mark a file or folder as in use, so that no other process removes it.

    Raises FileNotFoundError if it does not exist, BlockingIOError if it is being removed.
    """
    return Lock(temporary.hold(str(path)))


@dataclass
class LockedFolder:
    """Folder with the lock that distinguishes it from those of killed processes."""

    path: Path
    lock: Lock

    @classmethod
    def create(cls, parent: Path | None = None) -> LockedFolder:
        """Create a temporary folder, after removing the leftovers of killed processes beside it.

        Raises OSError.
        """
        base = str(parent or tempfile.gettempdir())
        temporary.sweep(base)
        name, descriptor = temporary.create_folder(base)
        return cls(Path(name), Lock(descriptor))

    def remove(self) -> None:
        """Remove the folder, and release its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def keep_private(self) -> None:
        """Keep the folder until its lock is garbage collected."""
        # Closing the old lock must not release it, so its descriptor is duplicated first.
        descriptor = os.dup(self.lock.descriptor)
        self.lock.close()
        self.lock = Lock(descriptor, self.path)


@contextmanager
def new_folder(path: Path, mark: str) -> Iterator[Path]:
    """Provide a folder that is renamed to `path` after the block, unless that raises.

    A complete folder that another process put there first stays. Raises HostError if the system
    refuses to write.

    Args:
        path: final path; missing parents are created.
        mark: name of the file that a complete folder has, written and synced last.
    """
    with _beside(path) as work:
        yield work.path
        sync(work.path)
        # Without its mark, a folder at the final path is the leftover of a crash.
        if not (path / mark).is_file():
            shutil.rmtree(path, ignore_errors=True)
        try:
            work.path.rename(path)
        except OSError:
            if not (path / mark).is_file():
                raise
            shutil.rmtree(work.path, ignore_errors=True)
        sync(path.parent)
    work.lock.close()


@contextmanager
def replacing_folder(path: Path) -> Iterator[LockedFolder]:
    """Provide a folder that replaces the one at `path` after the block, unless that raises.

    If another process uses the old folder, the new one stays private to this process and is removed
    with its lock. Raises HostError if the system refuses to write.
    """
    with _beside(path) as work:
        yield work
        sync(work.path)
        if _replace(work.path, path):
            sync(path.parent)
            work.path = path
        else:
            work.keep_private()


@contextmanager
def _beside(path: Path) -> Iterator[LockedFolder]:
    """Provide a temporary folder beside `path`, and remove it if the block raises."""
    work: LockedFolder | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = LockedFolder.create(path.parent)
        yield work
    except BaseException as error:
        if work is not None:
            work.remove()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def _replace(work: Path, path: Path) -> bool:
    """Rename a folder and return True, or return False if the old one is in use."""
    try:
        if not temporary.remove_unused(str(path)):
            return False
    except OSError:
        # The file system has no locks, so the newer folder wins.
        shutil.rmtree(path, ignore_errors=True)
    try:
        work.rename(path)
    except OSError as error:
        # Another process was faster: its folder has the same key, and so the same contents.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def publish(work: Path, path: Path) -> None:
    """Rename a finished file to its final path: fsync, rename, fsync of the folder.

    An earlier file there stays intact until the rename. Raises HostError.
    """
    try:
        work.chmod(file_mode())
        sync(work)
        work.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises HostError."""
    with temporary_beside(path) as work:
        try:
            work.write_bytes(data)
        except OSError as error:
            raise unwritable(path, error) from error
        publish(work, path)


def unwritable(path: Path, error: OSError) -> HostError:
    """Return the error for a path that cannot be written."""
    path = _targets.get(path, path)
    code, hint = "output-unwritable", "check that the folder exists and is writable"
    if error.errno in _DISK_FULL:
        code, hint = "disk-full", "free some space; an earlier file there is untouched"
    elif error.errno == errno.EEXIST:
        # The path is a device or a pipe, which a rename would replace by a file.
        hint = "pass the path of a plain file"
    return HostError(code, f"{path} cannot be written", why=error.strerror or str(error), hint=hint)


def convert_os_error(error: OSError) -> HostError:
    """Return the error for a failed system call that no other error explains."""
    code, hint = "host-io", "check the path, its permissions and the disk"
    if error.errno in _DISK_FULL:
        code, hint = "disk-full", "free some space, also for temporary files (TMPDIR)"
    what = "the system refused an operation"
    if error.filename:
        what += f" on {error.filename}"
    return HostError(code, what, why=error.strerror or str(error), hint=hint)
