"""The console that reports are printed on."""

from __future__ import annotations

import errno
import os

from rich.console import Console


class StderrConsole(Console):
    """Console on standard error that raises when its reader is gone.

    On a broken pipe rich would exit with status 1, which means a missed gate.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
