"""The one error boundary, and how results and reports are printed."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import click

from edgepack import files
from edgepack.errors import EdgepackError

FAILED, COULD_NOT_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, sort_keys=True, allow_nan=False))


def fail(error: EdgepackError, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": error.to_json()})
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    first, *rest = str(error).splitlines()
    click.secho(first, err=True, fg="red" if colour else None, bold=colour)
    if rest:
        click.echo("\n".join(rest), err=True)
    sys.exit(error.exit_code)


def boundary(command: Callable[..., None]) -> Callable[..., None]:
    """The one place where errors are printed and become exit statuses."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except EdgepackError as error:
            fail(error, bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
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
            traceback.print_exc()
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
    from rich.console import Console

    from edgepack.report import render_terminal

    render_terminal(document, Console(stderr=True))
    bundle = document["bundle"]
    click.echo(f"content {bundle['content_digest']}", err=True)
    click.echo(f"sha256  {bundle['sha256']}", err=True)
