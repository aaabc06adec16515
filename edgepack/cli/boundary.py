"""The one error boundary, and how results and reports are printed."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn

import click

from edgepack import files
from edgepack.errors import EdgepackError
from edgepack.runtime.streams import printable, reserve_stdout, say, show, tell

FAILED, COULD_NOT_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def print_json(document: Any) -> None:
    show(json.dumps(document, sort_keys=True, allow_nan=False) + "\n")


def fail(error: EdgepackError, as_json: bool) -> NoReturn:
    """Print an error and exit; if nothing can be printed, the exit status is all that is left."""
    if as_json:
        with suppress(EdgepackError):
            print_json({"error": error.to_json()})
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    lines = [printable(line) for line in str(error).splitlines()]
    with suppress(OSError):
        click.secho(lines[0], err=True, fg="red" if colour else None, bold=colour)
        click.echo("".join(line + "\n" for line in lines[1:]), err=True, nl=False)
    sys.exit(error.exit_code)


def boundary(command: Callable[..., None]) -> Callable[..., None]:
    """The one place where errors are printed and become exit statuses."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with reserve_stdout():
                command(*args, **kwargs)
        except EdgepackError as error:
            fail(error, bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            tell("interrupted; nothing was written")
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OSError as error:
            fail(files.failed(error), bool(kwargs.get("as_json")))
        except MemoryError:
            fail(
                EdgepackError(
                    "out-of-memory",
                    "this machine has too little memory for the build",
                    hint="edgepack build --dry-run tells how much is needed",
                ),
                bool(kwargs.get("as_json")),
            )
        except Exception as error:  # noqa: BLE001
            # Python would exit with 1, which is what a missed gate means.
            tell(traceback.format_exc())
            fail(
                EdgepackError(
                    "internal-error",
                    "edgepack itself failed; this is a fault of its own",
                    why=f"{type(error).__name__}: {error}",
                    hint="report it with the lines above; nothing was written",
                ),
                bool(kwargs.get("as_json")),
            )

    return run


def show_report(document: Any) -> None:
    """Print a report, and under it the two digests of its bundle."""
    from edgepack.report import render_terminal
    from edgepack.report.console import StderrConsole

    render_terminal(document, StderrConsole())
    bundle = document["bundle"]
    say(f"content {bundle['content_digest']}", f"sha256  {bundle['sha256']}")
