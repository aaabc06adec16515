"""Choose the error to report for an exception that no command foresaw."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple, Optional, Tuple

from .bundle.archive import Archive
from .bundle.index import check_all, read_index
from .errors import BundleError, DeviceError, EdgepackError


class BundleState(NamedTuple):
    """Fingerprint of the bundle's file, to detect that it changed during a command.

    Attributes:
        path: the bundle's file.
        stamp: its inode, size and time of change; empty if it cannot be read.
    """

    path: str
    stamp: Tuple[int, ...]

    @classmethod
    def read(cls, path: str) -> BundleState:
        """Return the present state of a file."""
        try:
            status = os.stat(path)
        except OSError:
            return cls(path, ())
        return cls(path, (status.st_ino, status.st_size, status.st_mtime_ns))


def explain_exception(error: Exception, before: BundleState) -> EdgepackError:
    """Return the error to report in place of `error`.

    Args:
        error: an exception other than an EdgepackError.
        before: state of the bundle's file when the command began. Modules are imported from it on
            demand, so a file that was rewritten meanwhile can fail in any of them.
    """
    if isinstance(error, MemoryError):
        return DeviceError(
            "out-of-memory",
            "this device has too little memory",
            why=str(error),
            hint="close other programs, or build a smaller model",
        )
    # `cp` over a bundle in use changes its size or time; a rename changes its inode.
    if BundleState.read(before.path) != before:
        return BundleError(
            "bundle-changed",
            "the bundle was changed while it was in use",
            why=f"{type(error).__name__}: {error}",
            hint="run the command again; to replace a bundle, copy to another name and rename",
        )
    return _damage(before.path) or EdgepackError(
        "internal-error",
        "the loader itself failed",
        why=f"{type(error).__name__}: {error}\n{_raised_at(error)}",
        hint="report it with the lines above",
    )


def _damage(path: str) -> Optional[BundleError]:
    """Return the error for a damaged bundle; None for an intact one."""
    if not os.path.isfile(path):
        return None
    try:
        with Archive(path) as archive:
            check_all(archive, read_index(archive))
    except BundleError as error:
        return error
    return None


def _raised_at(error: Exception) -> str:
    """Return the innermost line of the loader in the traceback of an exception."""
    trace, position = error.__traceback__, ""
    while trace is not None:
        # Frames of numpy and of the engine are skipped.
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name.startswith(__name__.rpartition(".")[0]):
            position = f"in {name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{position}, Python {platform.python_version()}"
