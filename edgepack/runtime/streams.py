"""The three ways in which a command speaks: text for people, an error, and the result."""

from __future__ import annotations

import sys

from .errors import InputError


def say(*lines: str) -> None:
    """Text for people, on stderr. Raises OSError where that cannot be written."""
    # `print` takes a stderr that was closed for "the default", which is stdout.
    if lines and sys.stderr is not None:
        print("\n".join(lines), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """An error, on stderr. Where nobody can hear it, the exit status is all that is left."""
    try:
        say(text)
    except OSError:
        # Python would try again at its end, and exit with a status of its own.
        sys.stderr = None


def show(text: str) -> None:
    """The result, on stdout: whole, or an error. Raises InputError."""
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = None
        raise InputError(
            "output-unwritable",
            "the result cannot be written to standard output",
            why=error.strerror or str(error),
            hint="check what standard output leads to, and the space left there",
        ) from error
