"""Standard error speaks to people, standard output carries the result and nothing else.

Python flushes both once more when it ends, and exits with 120 where that fails: a status that no
script expects. Whatever fails here is therefore pointed at the null device, and the exit status
stays the one that the command returned.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Dict, Iterator

from .errors import EdgepackError, InputError

_UNWRITABLE = 2
# "stream": standard output, while `reserve_stdout` keeps everything else away from it.
_RESERVED: Dict[str, Any] = {}


def printable(text: str) -> str:
    """Return one line of `text` without what steers a terminal or reorders a line.

    Control characters (escape sequences among them), surrogates and the marks that change the
    direction of text come out as `\\x1b`, `\\u202e` and so on; newlines and tabs as spaces.
    """
    return "".join(map(_printable, text))


def _printable(char: str) -> str:
    if char in "\n\r\t\u2028\u2029":
        return " "
    if unicodedata.category(char) in ("Cc", "Cf", "Cs"):
        return char.encode("unicode_escape").decode("ascii")
    return char


def restore_streams() -> None:
    """Replace every standard stream that was closed before this program began.

    The next file that is opened would get the number of a closed one, and what an engine prints
    would land in it. A closed output refuses what is written, as it did before.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A locale without a character must not cost the result.
        reconfigure(errors="backslashreplace")


@contextmanager
def reserve_stdout() -> Iterator[None]:
    """Keep standard output for `show`; what others write there goes to standard error.

    onnxruntime prints there from Python, and engines do from native code: so it is the descriptor
    itself that leads elsewhere while the block runs.
    """
    stdout = sys.stdout
    if not _is_descriptor(stdout, 1):
        # The caller captures what Python prints; the descriptor is not ours to move.
        _RESERVED["stream"] = stdout
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            del _RESERVED["stream"]
        return
    try:
        stdout.flush()
    except OSError as error:
        raise _unwritable("the result", "standard output", stdout, error) from error
    saved = os.dup(1)
    os.dup2(2, 1)
    stream = open(saved, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    _RESERVED["stream"] = stream
    try:
        yield
    finally:
        _flush(stdout)
        os.dup2(saved, 1)
        with suppress(OSError):
            _RESERVED.pop("stream").close()


def _is_descriptor(stream: Any, descriptor: int) -> bool:
    try:
        return bool(stream.fileno() == descriptor)
    except (AttributeError, OSError, ValueError):
        return False


def say(*lines: str) -> None:
    """Print lines for people on standard error. Raises InputError where that cannot be written."""
    if not lines:
        return
    try:
        print("\n".join(map(printable, lines)), file=sys.stderr, flush=True)
    except OSError as error:
        raise _unwritable("the account", "standard error", sys.stderr, error) from error


def tell(text: str) -> None:
    """Print an error on standard error; if that fails, the exit status is all that is left."""
    with suppress(EdgepackError):
        say(*text.split("\n"))


def show(text: str) -> None:
    """Write the result on standard output, whole. Raises InputError where that fails."""
    stream: Any = _RESERVED.get("stream", sys.stdout)
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise _unwritable("the result", "standard output", stream, error) from error


def flush_streams(status: int) -> int:
    """Flush both streams; return `status`, or 2 where a success could not be written."""
    for stream in (sys.stdout, sys.stderr):
        if not _flush(stream):
            status = status or _UNWRITABLE
    return status


def _flush(stream: Any) -> bool:
    try:
        stream.flush()
    except OSError:
        _discard(stream)
        return False
    return True


def _discard(stream: Any) -> None:
    """Send what a failed stream still holds to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()


def _unwritable(subject: str, name: str, stream: Any, error: OSError) -> InputError:
    _discard(stream)
    return InputError(
        "output-unwritable",
        "{} cannot be written to {}".format(subject, name),
        why=error.strerror or str(error),
        hint="check what {} leads to, and the space left there".format(name),
    )
