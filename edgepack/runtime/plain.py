"""Regular files, opened without ever waiting for a writer.

A named pipe blocks whoever opens it until somebody writes into it, and a device such as /dev/zero
never ends. Every path that a user or a model names is therefore opened here: without blocking, and
refused unless it is a regular file (or a link to one).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO, Optional

NOT_PLAIN = "it is not a regular file"


def open_descriptor(path: "os.PathLike[str] | str", flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor.

    Raises OSError; with the text `NOT_PLAIN` for a folder, a named pipe, a socket or a device.
    """
    # A device is refused before it is opened: merely opening a tape rewinds it.
    _require_regular(path, os.stat(path).st_mode)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        # Another file may have replaced it between the check and the opening.
        _require_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_plain(path: "os.PathLike[str] | str") -> BinaryIO:
    """Open a regular file for reading. Raises OSError as `open_descriptor` does."""
    return os.fdopen(open_descriptor(path), "rb")


def read_plain(path: "os.PathLike[str] | str", limit: Optional[int] = None) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises OSError, EFBIG if it is longer."""
    with open_plain(path) as file:
        if limit is None:
            return file.read()
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", os.fspath(path))
    return content


def require_plain(path: str) -> None:
    """Raise FileExistsError if a path names something other than a file.

    A rename would replace a device by a file: /dev/null, for example, if root runs this.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "it exists and is not a regular file")


def file_mode() -> int:
    """Return the permissions of a new file: 0644, less what the user's umask denies."""
    # The umask can only be read by setting it; a file created in between is private.
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o644 & ~mask


def _require_regular(path: "os.PathLike[str] | str", mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NOT_PLAIN, os.fspath(path))
