"""Atomic replacement of a file, by one process at a time.

The temporary file beside it has a fixed name and is locked while its writer lives. A killed writer
leaves it behind, unlocked, and the next one reuses it: nothing piles up, and readers see either the
old file or the new one.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import BinaryIO, Callable, Iterator, Optional

from ..errors import DeviceError, EdgepackError
from ..plain import file_mode

PART = ".part"
Publish = Callable[[Callable[[BinaryIO], None]], None]
Running = Callable[[str], DeviceError]


@contextmanager
def lock_part(path: str, running: Optional[Running] = None) -> Iterator[Publish]:
    """Hold the temporary file of `path`, locked, while the block runs.

    Args:
        path: the file to publish.
        running: makes the error for another process that is writing the file from the reason;
            None for the error of `finish`.

    Yields the function that publishes the file: it calls its argument to write into the open
    temporary file, syncs and renames it. An unpublished file is removed when the block ends:

        with lock_part("m.engine") as publish:      # m.engine.part exists, locked
            publish(lambda file: file.write(data))  # now m.engine does

    Raises DeviceError if another process is writing, if the temporary name belongs to something
    that this user did not create, or if the file cannot be written.
    """
    part = path + PART
    try:
        descriptor = _open_locked(part, running or _finish_running)
    except OSError as error:
        raise _unwritable(path, error) from error
    # Set by the inner function once the temporary file has its final name.
    published = False

    def publish(write: Callable[[BinaryIO], None]) -> None:
        nonlocal published
        try:
            # A killed writer may have left bytes in the file.
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
    """Remove the temporary file that a killed writer of `path` left, if possible."""
    part = path + PART
    if os.path.lexists(part):
        with suppress(OSError, DeviceError):
            descriptor = _open_locked(part, _finish_running)
            os.unlink(part)
            os.close(descriptor)


def _open_locked(part: str, running: Running) -> int:
    """Open and lock the temporary file, reusing one that a killed writer left."""
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(part, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise _blocked_error(part) from error
            raise
        try:
            status = os.fstat(descriptor)
            own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not own or status.st_nlink > 1:
                raise _blocked_error(part)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(part), status):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise running(f"{part} is locked") from error
        except BaseException:
            os.close(descriptor)
            raise
        # Its writer published or removed it between the opening and the lock: try again.
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish_running(why: str) -> DeviceError:
    return DeviceError(
        "finish-running",
        "another process is building this engine",
        why=why,
        hint="wait until it is done",
    )


def _blocked_error(part: str) -> DeviceError:
    return DeviceError(
        "output-unwritable",
        "the temporary file beside the bundle cannot be created",
        why=f"{part} exists and is not a file of this user",
        hint="inspect it and remove it",
    )


def _unwritable(path: str, error: OSError) -> EdgepackError:
    return DeviceError(
        "output-unwritable",
        f"the file beside the bundle cannot be written: {path}",
        why=error.strerror or str(error),
        hint="check the folder, its permissions and its free space",
    )
