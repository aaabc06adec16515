"""Temporary files and folders that the next run can tell from those in use.

Each is called `.edgepack-XXXXXXXX` (a file also ends in `.tmp`) and carries a shared lock (flock)
for as long as the process that made it, or one that inherited the descriptor, lives. Whoever
removes one takes the lock for itself alone first: what a killed process left can be locked and
goes, what a running one uses cannot and stays. On a file system without locks nothing is removed.
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
    """Create a temporary file; returns its path and the open descriptor that holds its lock."""
    while True:
        descriptor, path = tempfile.mkstemp(dir=folder, prefix=PREFIX, suffix=SUFFIX)
        if _hold(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def create_folder(parent: Optional[str] = None) -> Tuple[str, int]:
    """Create a temporary folder; returns its path and the descriptor that holds its lock.

    Args:
        parent: where; None for the system's folder of temporary files (TMPDIR).
    """
    while True:
        path = tempfile.mkdtemp(dir=parent, prefix=PREFIX)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if _hold(descriptor, path):
                return path, descriptor
            os.close(descriptor)


def hold(path: str) -> int:
    """Mark a file or folder as in use; returns the descriptor whose closing ends that.

    Raises FileNotFoundError where it is gone, BlockingIOError where it is about to go.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if _hold(descriptor, path):
        return descriptor
    os.close(descriptor)
    raise BlockingIOError("{} is being removed".format(path))


def remove_unused(path: str) -> bool:
    """Remove a file or folder unless it is in use; returns False where it is.

    It disappears by one rename, so that nobody meets half of it. Raises OSError where it cannot
    be removed, or where the file system has no locks that could tell.
    """
    if os.path.islink(path):
        os.unlink(path)
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, exclusive=True) or not _same(descriptor, path):
            return False
        _remove(path)
    finally:
        os.close(descriptor)
    return True


def sweep(folder: str) -> None:
    """Remove what killed processes of this user left in a folder under the name of this module."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
        for path in (os.path.join(folder, name) for name in names):
            # Another process may remove it at the same time; what cannot be removed may stay.
            with suppress(OSError):
                if _is_ours(path):
                    remove_unused(path)


def _is_ours(path: str) -> bool:
    """Tell whether `create_file` or `create_folder` of this user can have made it."""
    status = os.lstat(path)
    wanted = stat.S_ISREG if path.endswith(SUFFIX) else stat.S_ISDIR
    owner = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    return wanted(status.st_mode) and status.st_uid == owner


def _remove(path: str) -> None:
    gone = path
    if not _NAME.fullmatch(os.path.basename(path)):
        folder = os.path.dirname(os.path.abspath(path))
        gone = os.path.join(folder, PREFIX + secrets.token_hex(4))
        os.rename(path, gone)
    if os.path.isdir(gone):
        shutil.rmtree(gone, ignore_errors=True)
    else:
        os.unlink(gone)


def _hold(descriptor: int, path: str) -> bool:
    """Lock what was just opened; False where somebody is removing it."""
    try:
        return _lock(descriptor, exclusive=False) and _same(descriptor, path)
    except OSError:
        # Without locks nothing is ever removed: what is there stays.
        return True


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Lock a descriptor without waiting; False where another process holds it.

    Raises OSError where the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOLCK, "this system has no locks") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: str) -> bool:
    """Tell whether a path still is what was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
