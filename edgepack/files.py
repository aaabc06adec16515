"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgepack.errors import HostError, SpecError
from edgepack.runtime.bundle.whole import file_mode, require_plain

CHUNK = 1 << 20
# Seconds after which a temporary file or folder belongs to no running build.
ABANDONED = 86400
TEMPORARY = ".tmp"
NEW = ".new-"


def expand_user(path: str) -> Path:
    """Return a path with `~` expanded; as it is where its user has no home, or is none.

    `Path.expanduser` raises RuntimeError there.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises OSError where it is a folder, a pipe or a device."""
    # NONBLOCK: opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


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

    Being in the same folder it is on the same file system, so that `publish` is one rename.
    """
    _sweep(path)
    try:
        require_plain(str(path))
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY
        )
        os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(place: Path, mark: str, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `place`, which takes its place by one rename when the block ends well.

    Raises HostError where the system refuses to write it.

    Args:
        place: its parents are made where need be.
        mark: the file that a whole folder has, written and synced last.
        replace: whether a whole folder that stands there gives way; if not, it stays, as the work
            of another process that was first.
    """
    work: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep_folders(place.parent)
        work = Path(tempfile.mkdtemp(dir=place.parent, prefix=NEW))
        yield work
        sync(work)
        if replace or not (place / mark).is_file():
            shutil.rmtree(place, ignore_errors=True)
        try:
            work.rename(place)
        except OSError:
            if not (place / mark).is_file():
                raise
        sync(place.parent)
    except OSError as error:
        raise unwritable(place, error) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete what killed builds left beside `path`, once no running one can own it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # Another build may delete it at the same time; and what cannot be deleted may stay.
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def _sweep_folders(folder: Path) -> None:
    """Delete the new folders that killed processes left, once no running one can own them."""
    for left in folder.glob(f"{NEW}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Put a finished file in its place: fsync, rename, fsync of the folder.

    What stood there before stays whole until the rename. Raises HostError.
    """
    try:
        temporary.chmod(file_mode())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises HostError."""
    with temporary_beside(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise unwritable(path, error) from error
        publish(temporary, path)


def unwritable(path: Path, error: OSError) -> HostError:
    """The error for a place that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if path.name.startswith(".") and path.suffix == TEMPORARY:
        # What was asked for, not the temporary file that stands in for it.
        path = path.with_name(path.name[1:].rsplit(".", 2)[0])
    return HostError(
        "disk-full" if full else "output-unwritable",
        f"{path} cannot be written",
        why=error.strerror or str(error),
        hint="free some space; what stood there before is untouched"
        if full
        else "give a file that may be made anew"
        if error.errno == errno.EEXIST
        else "check that the folder exists and may be written",
    )


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
