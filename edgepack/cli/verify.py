"""`edgepack verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.boundary import COULD_NOT_RUN, FAILED, boundary, print_json
from edgepack.cli.loader import through_loader, warn_of_loader, warn_of_what_is_left
from edgepack.cli.options import (
    as_json,
    bundle_file,
    keep,
    over_ssh,
    refuse_without_device,
    threads,
    trusted,
)

if TYPE_CHECKING:
    from edgepack.bundle import Admitted, Demands


@click.command(short_help="Prove a BUNDLE, here or on devices.")
@bundle_file
@click.option(
    "--on",
    multiple=True,
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Prove it on a device instead; repeat it for more.",
)
@click.option(
    "--emulate",
    "cpus",
    multiple=True,
    metavar="CPU",
    help="Prove it on an emulated CPU instead; repeat it for more.",
)
@threads
@keep
@over_ssh
@as_json
@boundary
@trusted
def verify(
    bundle: Path,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    as_json: bool,
    demands: Demands,
    **settings: Any,
) -> None:
    """Prove a BUNDLE on this machine or on devices.

    On this machine, emulated CPUs included, edgepack's own loader reads the bundle and runs no
    code in it; a device runs the bundle itself.
    """
    from edgepack.bundle import admit

    if not on:
        refuse_without_device(**settings)
    if on or cpus:
        with admit(bundle, demands) as admitted:
            _on_devices(admitted, on, cpus, threads, as_json, **settings)
    else:
        through_loader(bundle, ["verify", f"--threads={threads}"], as_json, demands)


def _on_devices(
    bundle: Admitted,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Verify a bundle on several devices, and show a row for each."""
    from contextlib import ExitStack

    from edgepack import device
    from edgepack.device import ssh
    from edgepack.report import render_matrix
    from edgepack.report.console import StderrConsole

    addresses, reach = [ssh.parse(url) for url in dict.fromkeys(on)], ssh.Settings(**settings)
    warn_of_loader(bundle, "a device" if on else "")
    console = StderrConsole()
    status = console.status("connecting" if on else "emulating")
    with ExitStack() as stack:
        reached = [device.Ssh(address, reach, status.update) for address in addresses]
        stack.callback(warn_of_what_is_left, reached)
        devices: list[device.Ssh | device.Emulated] = [*map(stack.enter_context, reached)]
        devices += [stack.enter_context(device.Emulated(cpu)) for cpu in dict.fromkeys(cpus)]
        stack.enter_context(status)
        found = device.verify(
            bundle.path, devices, threads=threads, begin=lambda d: status.update(f"on {d.name}")
        )
    found["trust"] = bundle.to_json()
    render_matrix(found, console)
    if as_json:
        print_json(found)
    if any("error" in column for column in found["devices"]):
        sys.exit(COULD_NOT_RUN)
    sys.exit(0 if found["passed"] else FAILED)
