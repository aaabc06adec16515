"""Command line of edgepack.

The result of a command goes to stdout, as text or with `--json` as a document; progress, warnings
and errors go to stderr. Exit status: 0 done, 1 a gate was missed, 2 the command could not run.
Every option can also be set in the environment: EDGEPACK_BUILD_TARGET is `build --target`,
EDGEPACK_CACHE_CLEAN_JSON is `cache clean --json`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from edgepack import __version__
from edgepack.cli import (
    bench,
    build,
    bundle,
    compare,
    host,
    init,
    manifest,
    passes,
    serve,
    ship,
    targets,
    verify,
)
from edgepack.cli.boundary import ARGUMENTS, COULD_NOT_RUN, INTERRUPTED, TERMINATED, fail
from edgepack.errors import EdgepackError, SpecError
from edgepack.files import convert_os_error
from edgepack.runtime.streams import PipeClosed, flush_streams, restore_streams

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


class OrderedGroup(click.Group):
    """Group that lists its commands in the order of their use, not alphabetically."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line; `--help` prints during this."""
        with _convert_system_errors():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, and keep its words for commands that print it."""
        ctx.meta.setdefault(ARGUMENTS, tuple(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _convert_system_errors():
            return super().invoke(ctx)


@contextmanager
def _convert_system_errors() -> Iterator[None]:
    """Convert an OSError of click's output: click exits with 1 on a broken pipe."""
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosed from error
    except OSError as error:
        raise convert_os_error(error) from error


@click.group(cls=OrderedGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="edgepack")
def cli() -> None:
    """Package a trained model as one file that runs on a device and verifies itself there."""


# In the order of their use: build, look, verify, ship; then what is set up, and this machine.
for command in (
    build.build, bundle.inspect, verify.verify, bench.bench, compare.compare,
    bundle.run, serve.serve, bundle.sign,
    ship.ship,
    init.init, manifest.manifest, targets.targets, passes.passes,
    host.doctor, host.emulator, host.cache, host.completion,
):  # fmt: skip
    cli.add_command(command)


def _name_variables(group: click.Group, prefix: str) -> None:
    """Name every option's environment variable after its command and longest spelling.

    `build --max-drop` is EDGEPACK_BUILD_MAX_DROP. click alone would use the parameter's name,
    which differs for some: `--chain` is `passes` in the code.
    """
    # EDGEPACK, then EDGEPACK_CACHE for the group, then EDGEPACK_CACHE_CLEAN for its command.
    for name, command in group.commands.items():
        path = f"{prefix}_{name}"
        if isinstance(command, click.Group):
            _name_variables(command, path)
        for option in command.params:
            if isinstance(option, click.Option):
                spelling = max(option.opts, key=len).lstrip("-")
                option.envvar = f"{path}_{spelling}".replace("-", "_").upper()


_name_variables(cli, "EDGEPACK")


def _terminate(*_: object) -> NoReturn:
    # An exception unwinds the stack: temporary files are deleted, the loader's process ends.
    sys.exit(TERMINATED)


def main() -> None:
    """Run the command line and exit with its status."""
    restore_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _run_command()
    except SystemExit as stop:
        # sys.exit("text") and sys.exit(None) have no status of edgepack's.
        status = stop.code if isinstance(stop.code, int) else COULD_NOT_RUN
    sys.exit(flush_streams(status))


def _run_command() -> int:
    """Run the command that `sys.argv` names; return its exit status, or exit with it."""
    # Not standalone: click would print its errors itself, without a code and without --json.
    try:
        return int(cli.main(prog_name="edgepack", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return COULD_NOT_RUN
    except click.ClickException as error:
        # Only usage errors have a context.
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgepack"
        fault = SpecError("usage", error.format_message(), hint=f"{command} --help")
        fail(fault, "--json" in sys.argv)
    except click.Abort:
        return INTERRUPTED
    except EdgepackError as error:
        fail(error, "--json" in sys.argv)
