"""Consoles that reports are printed on."""

from __future__ import annotations

import io
import sys

from rich.console import Console

from edgepack.runtime.streams import PipeClosed, result_stream, write_result


class StderrConsole(Console):
    """Console on standard error that ends the command when its reader is gone.

    On a broken pipe rich would exit with status 1, which means a missed gate.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise PipeClosed."""
        raise PipeClosed


class ResultConsole(Console):
    """Console on standard output, for the text that a command was asked for.

    It prints there even while other output is redirected (`reserve_stdout`).
    """

    def __init__(self) -> None:
        super().__init__(file=_ResultFile(), highlight=False)


class _ResultFile(io.StringIO):
    """File that hands its text to `write_result`, which raises if it cannot be written."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding of the terminal, so that signs it lacks become ASCII."""
        return sys.stdout.encoding or "utf-8"

    def isatty(self) -> bool:
        """Return True if the result goes to a terminal."""
        return bool(result_stream().isatty())

    def flush(self) -> None:
        """Write the text since the last flush."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        if text:
            write_result(text)
