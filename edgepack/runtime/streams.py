"""Standard streams: the result of a command on standard output, everything else on standard error.

`print_result` and `write_result` print what a command was asked for: its text, or the document that
replaces the text with `--json`. `print_status` prints progress and warnings, `print_error` errors.

Python flushes both once more when it ends, and exits with 120 if that fails: a status that no
script expects. A stream that fails is therefore redirected to the null device, and the exit
status stays the one that the command returned.

A reader that closes its pipe early, as `head` does, ends the command without a message.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Dict, Iterator

from .errors import EdgepackError, InputError

_UNWRITABLE = 2
# What a shell reports of a program that SIGPIPE ended: 128 + 13.
PIPE_CLOSED = 141
# Holds standard output under "stream" while `reserve_stdout` redirects all other writes.
_RESERVED: Dict[str, Any] = {}


class PipeClosed(SystemExit):
    """End of the program because the reader of a stream has closed its pipe."""

    def __init__(self) -> None:
        super().__init__(PIPE_CLOSED)


def printable(text: str) -> str:
    """Return `text` as one line with terminal controls and reordering marks escaped.

    Control characters (so also escape sequences), surrogates and the marks that change the
    direction of text become `\\x1b`, `\\u202e` and so on; newlines and tabs become spaces. What
    GitHub Actions would run as a command, `::` at the start or `##[` anywhere, gets a space.
    """
    text = text.replace("##[", "## [")
    if text.lstrip().startswith("::"):
        text = text.replace("::", ": :", 1)
    return "".join(map(_printable, text))


def _printable(char: str) -> str:
    if char in "\n\r\t\u2028\u2029":
        return " "
    if unicodedata.category(char) in ("Cc", "Cf", "Cs"):
        return char.encode("unicode_escape").decode("ascii")
    return char


def restore_streams() -> None:
    """Replace every standard stream that was closed before this program began.

    Otherwise the next file to be opened would get the descriptor of a closed stream, and an
    engine's messages would land in that file. A closed output still refuses to be written.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, flags)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A character that the locale cannot encode must not lose the result.
        reconfigure(errors="backslashreplace")


@contextmanager
def reserve_stdout() -> Iterator[None]:
    """Keep standard output for `write_result`; redirect all other writes to standard error.

    onnxruntime prints there from Python and engines do from native code, so the descriptor itself
    is redirected while the block runs.
    """
    stdout = sys.stdout
    if not _is_descriptor(stdout, 1):
        # The caller captures Python's output (a test, a notebook): leave the descriptor alone.
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


def print_result(*lines: str) -> None:
    """Print lines of the result on standard output.

    Raises InputError if it cannot be written, PipeClosed if nobody reads it.
    """
    if lines:
        write_result("".join(printable(line) + "\n" for line in lines))


def write_result(text: str) -> None:
    """Write text to standard output as it is, and flush.

    Raises InputError if that fails, PipeClosed if nobody reads it.
    """
    stream = result_stream()
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise _unwritable("the result", "standard output", stream, error) from error


def result_stream() -> Any:
    """Return the stream of the result: standard output, even while it is reserved."""
    return _RESERVED.get("stream", sys.stdout)


def print_status(*lines: str) -> None:
    """Print progress or a warning on standard error.

    Raises InputError if it cannot be written, PipeClosed if nobody reads it.
    """
    if lines:
        write_status("\n".join(map(printable, lines)))


def write_status(text: str) -> None:
    """Print text on standard error as it is. Raises as `print_status` does."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        raise _unwritable("the messages", "standard error", sys.stderr, error) from error


def print_error(text: str) -> None:
    """Print an error on standard error; if that fails, only the exit status reports it."""
    with suppress(EdgepackError, PipeClosed):
        print_status(*text.split("\n"))


def flush_streams(status: int) -> int:
    """Flush both streams; return `status`, or another if a success could not be written."""
    for stream in (sys.stdout, sys.stderr):
        failure = _flush(stream)
        status = status or failure
    return status


def _flush(stream: Any) -> int:
    """Flush a stream; return 0, or the exit status of the failure."""
    try:
        stream.flush()
    except OSError as error:
        _discard(stream)
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        return _UNWRITABLE
    return 0


def _discard(stream: Any) -> None:
    """Redirect a failed stream to the null device and flush its buffer there."""
    # The buffer cannot be dropped, and Python would flush it again at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()


def _unwritable(subject: str, name: str, stream: Any, error: OSError) -> BaseException:
    _discard(stream)
    if isinstance(error, BrokenPipeError):
        return PipeClosed()
    return InputError(
        "output-unwritable",
        f"{subject} cannot be written to {name}",
        why=error.strerror or str(error),
        hint=f"check the file or pipe behind {name}, and its free space",
    )
