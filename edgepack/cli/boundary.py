"""Error boundary of the command line, and the printing of results and reports."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from edgepack import files
from edgepack.errors import DeprecatedName, EdgepackError
from edgepack.runtime.parity.verdict import PASS, UNVERIFIED
from edgepack.runtime.streams import (
    PipeClosed,
    print_error,
    print_result,
    print_status,
    printable,
    reserve_stdout,
    write_result,
)

if TYPE_CHECKING:
    from edgepack.report.documents import Report

# Key of the command line, as words, in the `meta` of click's root context.
ARGUMENTS = "edgepack.arguments"
# 130 and 143 are 128 plus the signal, as a shell reports SIGINT and SIGTERM.
FAILED, COULD_NOT_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def print_json(document: object) -> None:
    """Print a document as one line of JSON on stdout."""
    write_result(json.dumps(document, sort_keys=True, allow_nan=False) + "\n")


def print_text_or_json(as_json: bool, document: object, *lines: str) -> None:
    """Print a command's result on stdout: lines of text, or with `--json` a document instead."""
    if as_json:
        print_json(document)
    else:
        print_result(*lines)


def find_status(verdict: str | None, allow_unverified: bool) -> int:
    """Return the exit status of a verdict: 0 only for PASS, or for an allowed UNVERIFIED.

    Args:
        verdict: PASS, FAIL or UNVERIFIED; None if a device could not run.
        allow_unverified: True to accept UNVERIFIED.
    """
    if verdict is None:
        return COULD_NOT_RUN
    if verdict == UNVERIFIED and allow_unverified:
        return 0
    return 0 if verdict == PASS else FAILED


def fail(error: EdgepackError, as_json: bool) -> NoReturn:
    """Print an error and exit with its status, even if nothing can be printed."""
    # A reader of stdout that is gone must not hide the error on stderr.
    if as_json:
        with suppress(EdgepackError, PipeClosed):
            print_json({"error": error.to_json()})
    print_failure(error)
    sys.exit(error.exit_code)


def print_failure(error: EdgepackError) -> None:
    """Print an error on standard error, as far as that can be written."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    # Errors quote foreign text: its escape sequences must not reach the terminal.
    lines = [printable(line) for line in str(error).splitlines()]
    with suppress(OSError):
        click.secho(lines[0], err=True, fg="red" if colour else None, bold=colour)
        click.echo("".join(line + "\n" for line in lines[1:]), err=True, nl=False)


@contextmanager
def print_deprecations() -> Iterator[None]:
    """Print a warning of an old name in one line, without the place in the code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=DeprecatedName)
        show = warnings.showwarning

        def print_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, DeprecatedName):
                print_status(f"warning: {message}")
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = print_warning
        yield


def boundary(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: print its errors and convert them to exit statuses, here alone."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with reserve_stdout(), print_deprecations():
                command(*args, **kwargs)
        except EdgepackError as error:
            fail(error, bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            print_error("interrupted; nothing was written")
            sys.exit(INTERRUPTED)
        # click's own errors are printed by `_run_command`, which knows the usage.
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OSError as error:
            fail(files.convert_os_error(error), bool(kwargs.get("as_json")))
        except MemoryError:
            fail(_describe_memory_error(), bool(kwargs.get("as_json")))
        except Exception as error:  # noqa: BLE001
            # Python would exit with 1, which means a missed gate.
            print_error(traceback.format_exc())
            fail(
                EdgepackError(
                    "internal-error",
                    "edgepack failed with an internal error",
                    why=f"{type(error).__name__}: {error}",
                    hint="report it with the lines above; nothing was written",
                ),
                bool(kwargs.get("as_json")),
            )

    return run


def _describe_memory_error() -> EdgepackError:
    hint = "close other programs, or add memory or swap"
    if click.get_current_context().info_name == "build":
        hint = f"{format_command(add=('--dry-run',))} shows how much the build needs"
    return EdgepackError("out-of-memory", "out of memory", hint=hint)


def format_command(remove: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> str:
    """Return the user's command as one would type it again, quoted for a shell.

    Args:
        remove: flags to leave out.
        add: words to append.
    """
    words = ["edgepack"]
    # `build m.onnx --random-calibration` without that flag and with `--calibration PATH` is
    # "edgepack build m.onnx --calibration PATH": all other options stay as the user gave them.
    for word in click.get_current_context().find_root().meta.get(ARGUMENTS, ()):
        if word not in remove:
            words.append(word)
    return shlex.join((*words, *add))


def print_report(document: Report, repeat: str = "", *, digests: bool = True) -> None:
    """Print a report on stdout, then the two digests of its bundle.

    Args:
        document: the report.
        repeat: the command that builds the bundle on real samples; "" for a general one.
        digests: print the digests.
    """
    from edgepack.report import render_terminal
    from edgepack.report.console import ResultConsole

    # The content digest is the same for every build of the same inputs; the SHA-256 is the file's.
    render_terminal(document, ResultConsole(), repeat)
    bundle = document["bundle"]
    if digests:
        print_result(f"content {bundle['content_digest']}", f"sha256  {bundle['sha256']}")
