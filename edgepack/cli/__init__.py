"""The command line: parse, call, print. The one error boundary.

Human text goes to stderr, `--json` to stdout. Exit status: 0 done, 1 a gate was missed, 2 it
could not run. Every option may also come from the environment: EDGEPACK_BUILD_TARGET is
`build --target`, and an option of a group's command has both names, EDGEPACK_CACHE_CLEAN_JSON.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from edgepack import __version__
from edgepack.cli import bench, build, bundle, host, ship, targets, verify
from edgepack.cli.boundary import COULD_NOT_RUN, INTERRUPTED, TERMINATED, fail
from edgepack.errors import EdgepackError, SpecError
from edgepack.files import failed
from edgepack.runtime.streams import flush_streams, restore_streams

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


class InOrder(click.Group):
    """Lists its commands in the order of their use, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line; `--help` prints here."""
        with _system_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _system_errors():
            return super().invoke(ctx)


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turn an OSError into an error of edgepack's: click exits with 1 on a broken pipe."""
    try:
        yield
    except OSError as error:
        raise failed(error) from error


@click.group(cls=InOrder, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="edgepack")
def cli() -> None:
    """From a trained model to one file that runs on the device and proves itself there."""


for command in (
    build.build, bundle.inspect, verify.verify, bench.bench, bundle.run, bundle.sign,
    ship.ship,
    targets.targets, host.doctor, host.emulator, host.cache, host.completion,
):  # fmt: skip
    cli.add_command(command)


def _name_variables(group: click.Group, prefix: str) -> None:
    """Name the environment variable of every option after the option as it is written."""
    for name, command in group.commands.items():
        path = f"{prefix}_{name}"
        if isinstance(command, click.Group):
            _name_variables(command, path)
        for option in command.params:
            if isinstance(option, click.Option):
                written = max(option.opts, key=len).lstrip("-")
                option.envvar = f"{path}_{written}".replace("-", "_").upper()


_name_variables(cli, "EDGEPACK")


def _terminated(*_: object) -> NoReturn:
    # As an exception, so that temporary files go and the loader's process ends.
    sys.exit(TERMINATED)


def main() -> None:
    """Entry point."""
    restore_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = _run_command()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else COULD_NOT_RUN
    sys.exit(flush_streams(status))


def _run_command() -> int:
    """Run the command that `sys.argv` names; returns or raises its exit status."""
    try:
        return int(cli.main(prog_name="edgepack", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return COULD_NOT_RUN
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgepack"
        fault = SpecError("usage", error.format_message(), hint=f"{command} --help")
        fail(fault, "--json" in sys.argv)
    except click.Abort:
        return INTERRUPTED
    except EdgepackError as error:
        fail(error, "--json" in sys.argv)
