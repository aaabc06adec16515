"""Options and arguments shared by several commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DeviceOptions(TypedDict, total=False):
    """Values of `ssh_options` and `keep`, by the names of `device.ssh.Settings`."""

    timeout: float
    python: str
    config: Path | None
    keep: bool


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
)
allow_unverified = click.option(
    "--allow-unverified",
    is_flag=True,
    help="Exit with 0 also if the verdict is UNVERIFIED.",
)
threads = click.option(
    "--threads",
    type=click.IntRange(0, 4096),
    default=0,
    help="Use this many threads; default: every physical core.",
)
bundle_file = click.argument("bundle", type=click.Path(path_type=Path))
keep = click.option("--keep", is_flag=True, help="Keep the file on the device for the next run.")


# Names of the parameters are the fields of `ssh.Settings`, which they are passed to as they are.
def ssh_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that reach devices by ssh."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(1),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="Limit each command on the device, and each attempt to send a file.",
        ),
        click.option(
            "--python",
            default="python3",
            show_default=True,
            metavar="PATH",
            help="Use this Python on the device.",
        ),
        click.option(
            "--ssh-config",
            "config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Use this file instead of your ssh_config.",
        ),
    ):
        command = option(command)
    return command


# `sha256sum` prints lower case, Windows' certutil may not.
def _parse_digest(_: click.Context, __: click.Parameter, value: str | None) -> str:
    digest = (value or "").lower()
    if value is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise click.BadParameter(f"{value!r} is not a SHA-256 of 64 hexadecimal digits")
    return digest


def trust_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that a bundle must satisfy before it is read, as `demands`."""

    @wraps(command)
    def run(
        *args: Any, expect: str, signers: Path | None, require_signature: bool, **kwargs: Any
    ) -> None:
        from edgepack import signing
        from edgepack.bundle import Demands

        # The flags, else the policy file: a device's owner sets it once for all commands.
        accepted = signing.accepted_signers(signers, require_signature)
        command(*args, demands=Demands(expect, accepted), **kwargs)

    # Decorators apply from the inside out, so that `--help` lists these in reverse.
    for option in (
        click.option(
            "--require-signature",
            is_flag=True,
            help="Refuse to run if no list of accepted keys is configured.",
        ),
        click.option(
            "--signers",
            type=click.Path(path_type=Path),
            metavar="ALLOWED_SIGNERS",
            help="Accept the bundle only if one of these keys signed it.",
        ),
        click.option(
            "--expect",
            callback=_parse_digest,
            metavar="SHA256",
            help="Accept the bundle only if its file has this hash.",
        ),
    ):
        run = option(run)
    return run


def refuse_without_device(**settings: Unpack[DeviceOptions]) -> None:
    """Refuse the ssh options of a command that reaches no device."""
    context = click.get_current_context()
    # Settings also come from defaults and the environment, for every command alike.
    for name in settings:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(param for param in context.command.params if param.name == name)
            raise click.UsageError(f"{option.opts[0]} is for a device: --on ssh://HOST")
