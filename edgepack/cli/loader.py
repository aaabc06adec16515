"""Asking a bundle's own loader, here or on a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgepack.cli.boundary import COULD_NOT_RUN


def warn_of_what_is_left(devices: list[Any]) -> None:
    for there in devices:
        if there.left:
            click.echo(f"warning: {there.left}", err=True)


def through_loader(
    bundle: Path,
    arguments: list[str],
    as_json: bool,
    on: str | None = None,
    against: str | None = None,
    **settings: Any,
) -> None:
    """Run a bundle through its own loader, isolated or on a device, and show what it says."""
    from contextlib import ExitStack

    from rich.console import Console

    from edgepack import device
    from edgepack.bundle import check
    from edgepack.device import ssh

    # Python would run any file as a script.
    check(bundle)
    with ExitStack() as stack:
        host: device.Local | device.Ssh
        if on is None:
            host = stack.enter_context(device.Local())
        else:
            status = Console(stderr=True, highlight=False).status("connecting")
            host = device.Ssh(ssh.parse(on), ssh.Settings(**settings), status.update)
            stack.callback(warn_of_what_is_left, [host])
            stack.enter_context(host)
            stack.enter_context(status)
        if against:
            arguments = [*arguments, "--against", host.put(Path(against))]
        finished = host.run(host.put(bundle), *arguments, *(["--json"] if as_json else []))
    click.echo(finished.stderr, err=True, nl=False)
    sys.stdout.write(finished.stdout.decode("utf-8", "replace"))
    sys.stdout.flush()
    # A loader that died by a signal could not run.
    sys.exit(finished.status if finished.status in (0, 1, 2) else COULD_NOT_RUN)
