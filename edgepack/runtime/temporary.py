"""Temporary files and folders whose locks show the next run which ones are in use.

Each is called `.edgepack-XXXXXXXX` (a file also ends in `.tmp`) and carries a shared lock (flock)
for as long as its creator, or a process that inherited the descriptor, lives. A file is removed
only under an exclusive lock: one that a killed process left behind can be locked and goes, one
that is in use cannot and stays. On a file system without locks nothing is removed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from typing import Optional, Tuple

PREFIX = ".edgepack-"
SUFFIX = ".tmp"
_NAME = re.compile(r"\.edgepack-[a-z0-9_]{8}(\.tmp)?")


def create_file(folder: str) -> Tuple[str, int]:
    """Create a temporary file; return its path and the open descriptor that holds its lock."""
    while True:
        descriptor, path = tempfile.mkstemp(dir=folder, prefix=PREFIX, suffix=SUFFIX)
        if _hold(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def create_folder(parent: Optional[str] = None) -> Tuple[str, int]:
    """Create a temporary folder; return its path and the descriptor that holds its lock.

    Args:
        parent: the folder that will contain it; None for the system's own (TMPDIR).
    """
    while True:
        # Another process's `sweep` may remove the folder before it is locked: then try again.
        path = tempfile.mkdtemp(dir=parent, prefix=PREFIX)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if _hold(descriptor, path):
                return path, descriptor
            os.close(descriptor)


def hold(path: str) -> int:
    """Mark a file or folder as in use until the returned descriptor is closed.

    Raises FileNotFoundError if it does not exist, BlockingIOError if it is being removed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if _hold(descriptor, path):
        return descriptor
    os.close(descriptor)
    raise BlockingIOError(f"{path} is being removed")


def remove_unused(path: str) -> bool:
    """Remove a file or folder unless it is in use; return False if it is.

    It disappears by one rename, so that no reader meets half of it. Raises OSError if it cannot be
    removed, or if the file system has no locks.
    """
    if os.path.islink(path):
        os.unlink(path)
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        # Another process may have removed or replaced the file before the lock was acquired.
        if not _lock(descriptor, exclusive=True) or not _same(descriptor, path):
            return False
        _remove(path)
    finally:
        os.close(descriptor)
    return True


def sweep(folder: str) -> None:
    """Remove the temporary files that killed processes of this user left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
        for path in (os.path.join(folder, name) for name in names):
            # Another process may be removing it too; a file that cannot be removed may stay.
            with suppress(OSError):
                if _is_ours(path):
                    remove_unused(path)


def _is_ours(path: str) -> bool:
    """Return True for a file or folder that this user's `create_*` may have created."""
    status = os.lstat(path)
    is_expected = stat.S_ISREG if path.endswith(SUFFIX) else stat.S_ISDIR
    owner = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    return is_expected(status.st_mode) and status.st_uid == owner


def _remove(path: str) -> None:
    doomed = path
    if not _NAME.fullmatch(os.path.basename(path)):
        folder = os.path.dirname(os.path.abspath(path))
        doomed = os.path.join(folder, PREFIX + secrets.token_hex(4))
        os.rename(path, doomed)
    if os.path.isdir(doomed):
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        os.unlink(doomed)


def _hold(descriptor: int, path: str) -> bool:
    """Lock a descriptor that was just opened; return False if its file is being removed."""
    try:
        return _lock(descriptor, exclusive=False) and _same(descriptor, path)
    except OSError:
        # Without locks nothing is ever removed, so the file is safe without one.
        return True


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Lock a descriptor without waiting; return False if another process holds the lock.

    Raises OSError if the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOLCK, "this system has no locks") from error
    try:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: str) -> bool:
    """Return True if a path still names the file behind a descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
