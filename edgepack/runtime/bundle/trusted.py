"""Files beside a bundle that are opened only if no other user could have written them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from ..errors import DeviceError


def open_own(path: str, flags: int, untrusted: Callable[[str], DeviceError]) -> int:
    """Open a file if only this user and root could have created or changed it.

    Args:
        path: of the file.
        flags: for `os.open`.
        untrusted: makes the error from the reason to distrust the file.

    Raises that error, and OSError if the system refuses.
    """
    # NONBLOCK: opening a named pipe would wait for its writer.
    # NOFOLLOW: a link in a shared folder could point at another user's file.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise untrusted("it is a symbolic link") from error
        raise
    reason = _find_distrust_reason(os.fstat(descriptor))
    if reason:
        os.close(descriptor)
        raise untrusted(reason)
    return descriptor


def _find_distrust_reason(status: os.stat_result) -> str:
    """Return the reason to distrust a file; empty if there is none."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return f"users other than its owner may write it (mode {mode:o})"
    # Systems without users, which have no `geteuid`, give every file the same owner.
    user = status.st_uid
    if hasattr(os, "geteuid"):
        user = os.geteuid()
    if status.st_uid not in (0, user):
        return f"it belongs to user {status.st_uid}; this is user {user}"
    return ""
