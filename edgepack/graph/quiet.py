"""Keep what exporters print, warn and log from the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence this thread's prints, warnings and log records.

    Other threads (a progress display) keep writing.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with muted():
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Silence prints and warnings; log records still reach their handlers."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Muted(sys.stdout)),
        contextlib.redirect_stderr(_Muted(sys.stderr)),
    ):
        warnings.simplefilter("ignore")
        yield


class _Muted(io.TextIOBase):
    """Stream that drops the output of the thread that created it and forwards any other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def rich_proxied_file(self) -> TextIO:
        """Return the terminal's own stream, to which rich draws its live display.

        rich replaces standard error by a stream that prints above the live display. It looks for
        this attribute to draw beneath it, or it would print every frame as a line of its own.
        """
        stream: TextIO = getattr(self._stream, "rich_proxied_file", self._stream)
        return stream
