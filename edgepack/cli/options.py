"""Options and arguments that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
threads = click.option(
    "--threads", type=click.IntRange(0, 4096), default=0, help="Default: every physical core."
)
bundle_file = click.argument("bundle", type=click.Path(path_type=Path))
keep = click.option("--keep", is_flag=True, help="Leave the file there for the next time.")


def over_ssh(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that reach devices by ssh."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(1),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="What one command there, or one attempt to send a file, may take.",
        ),
        click.option(
            "--python", default="python3", show_default=True, metavar="PATH", help="Python there."
        ),
        click.option(
            "--ssh-config",
            "config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="What ssh reads in place of your ssh_config.",
        ),
    ):
        command = option(command)
    return command


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> str:
    digest = (value or "").lower()
    if value is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise click.BadParameter(f"{value!r} is not a SHA-256: 64 hexadecimal digits")
    return digest


def trusted(command: Callable[..., None]) -> Callable[..., None]:
    """Add what a bundle is held against before it is read; the command gets it as `demands`."""

    @wraps(command)
    def run(
        *args: Any, expect: str, signers: Path | None, require_signature: bool, **kwargs: Any
    ) -> None:
        from edgepack import signing
        from edgepack.bundle import Demands

        accepted = signing.accepted_signers(signers, require_signature)
        command(*args, demands=Demands(expect, accepted), **kwargs)

    for option in (
        click.option(
            "--require-signature",
            is_flag=True,
            help="Refuse to go on where no list of accepted keys is configured.",
        ),
        click.option(
            "--signers",
            type=click.Path(path_type=Path),
            metavar="ALLOWED_SIGNERS",
            help="Accept the bundle only if one of these keys signed it.",
        ),
        click.option(
            "--expect",
            callback=_digest,
            metavar="SHA256",
            help="Accept the bundle only if its file has this hash.",
        ),
    ):
        run = option(run)
    return run


def refuse_without_device(**settings: Any) -> None:
    """Refuse options of ssh where no device is reached by it."""
    context = click.get_current_context()
    for name in settings:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(o for o in context.command.params if o.name == name)
            raise click.UsageError(f"{option.opts[0]} is for a device: --on ssh://HOST")
