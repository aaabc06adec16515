"""A file that appears as a whole, written by one process at a time.

The temporary file beside it has one fixed name and is locked while its writer lives. A writer that
was killed leaves it behind, unlocked, and the next one takes it over: nothing piles up, and the
file itself is always the old one or the new one.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import BinaryIO, Callable, Iterator

from ..errors import DeviceError, EdgepackError

PART = ".part"
Publish = Callable[[Callable[[BinaryIO], None]], None]


def require_plain(path: str) -> None:
    """Raise FileExistsError where something other than a file stands.

    A rename would put a file in the place of a device: of /dev/null, where root is at work.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "it is there already, and no plain file")


def file_mode() -> int:
    """Return the permissions of a new file: 0644, less what the user's umask denies."""
    # The umask can be read by setting it alone; a file made in between is private.
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o644 & ~mask


@contextmanager
def place(path: str) -> Iterator[Publish]:
    """Hold the temporary file of `path`, locked, for as long as the block takes.

    Yields what publishes the file: given a function that writes into an open file, it writes,
    syncs and renames. Unpublished, nothing is left of it when the block ends.

    Raises DeviceError where another process is writing, where the temporary name is taken by
    something that this user did not make, or where the file cannot be written.
    """
    part = path + PART
    try:
        descriptor = _locked(part)
    except OSError as error:
        raise _unwritable(path, error) from error
    published = False

    def publish(write: Callable[[BinaryIO], None]) -> None:
        nonlocal published
        try:
            os.ftruncate(descriptor, 0)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                write(file)
            os.fchmod(descriptor, file_mode())
            os.fsync(descriptor)
            os.replace(part, path)
            published = True
            _sync_folder(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    try:
        yield publish
    finally:
        if not published:
            with suppress(OSError):
                os.unlink(part)
        os.close(descriptor)


def sweep(path: str) -> None:
    """Remove what a killed writer of `path` left, where that can be done."""
    part = path + PART
    if os.path.lexists(part):
        with suppress(OSError, DeviceError):
            descriptor = _locked(part)
            os.unlink(part)
            os.close(descriptor)


def _locked(part: str) -> int:
    """The temporary file, locked. What a killed writer left is taken over."""
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(part, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise _blocked(part) from error
            raise
        try:
            here = os.fstat(descriptor)
            if not stat.S_ISREG(here.st_mode) or here.st_uid != os.geteuid() or here.st_nlink > 1:
                raise _blocked(part)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                there = os.lstat(part)
                if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise DeviceError(
                "finish-running",
                "another process is building this engine",
                why="{} is locked".format(part),
                hint="wait until it is done",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        # Between the opening and the lock its writer published or removed it: try again.
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blocked(part: str) -> DeviceError:
    return DeviceError(
        "output-unwritable",
        "something stands where the engine is to be written",
        why="{} is not a file of this user's own".format(part),
        hint="look at it, and remove it",
    )


def _unwritable(path: str, error: OSError) -> EdgepackError:
    return DeviceError(
        "output-unwritable",
        "the engine cannot be written: {}".format(path),
        why=error.strerror or str(error),
        hint="check the folder, its permissions and the space left",
    )
