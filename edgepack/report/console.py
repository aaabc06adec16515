"""The terminal that reports are drawn on."""

from __future__ import annotations

import errno
import os

from rich.console import Console


class StderrConsole(Console):
    """Draws on standard error.

    A reader that has gone is an error like any other: rich would exit with 1, which means a
    missed gate.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
