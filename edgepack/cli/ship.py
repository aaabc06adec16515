"""Command `edgepack ship`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.boundary import FAILED, boundary, print_text_or_json
from edgepack.cli.loader import warn_of_leftovers, warn_of_loader
from edgepack.cli.options import (
    DeviceOptions,
    allow_unverified,
    as_json,
    bundle_file,
    ssh_options,
    threads,
    trust_options,
)
from edgepack.runtime.streams import print_status

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgepack.bundle import Demands


@click.command(short_help="Install a BUNDLE on a device if it passes there.")
@bundle_file
@click.argument("device", metavar="ssh://[USER@]HOST[:PORT]/PATH")
@click.option("--no-verify", is_flag=True, help="Install without verifying on the device.")
@threads
@ssh_options
@allow_unverified
@as_json
@boundary
@trust_options
def ship(
    bundle: Path,
    device: str,
    no_verify: bool,
    threads: int,
    allow_unverified: bool,
    as_json: bool,
    demands: Demands,
    **settings: Unpack[DeviceOptions],
) -> None:
    """Verify a BUNDLE on a device and, only if it passes, install it there by one rename.

    PATH is a file or a folder; /~/PATH starts in the home folder. If verification fails, the
    file that was there is left unchanged. The bundle's .sha256 is installed with it, and its
    .sig if it is signed.
    """
    from contextlib import ExitStack

    from edgepack.bundle import admit
    from edgepack.device import ssh
    from edgepack.report import render_matrix
    from edgepack.report.console import ResultConsole, StderrConsole
    from edgepack.report.figures import format_bytes

    address = ssh.parse(device, path=True)
    status = StderrConsole().status("connecting")
    with ExitStack() as stack:
        admitted = stack.enter_context(admit(bundle, demands))
        remote = ssh.Ssh(address, ssh.Settings(**settings), status.update)
        # The loader in the bundle runs on the device only to verify there.
        warn_of_loader(admitted, "" if no_verify else remote.name)
        # Callbacks run in reverse: the status ends first, then the connection, then the warning.
        stack.callback(warn_of_leftovers, [remote])
        stack.enter_context(remote)
        stack.enter_context(status)
        result = ssh.ship(
            remote, admitted.path, address.path, threads=threads, prove=not no_verify,
            allow_unverified=allow_unverified, digest=admitted.sha256,
            signature=admitted.signed.decode("ascii", "replace"),
        )  # fmt: skip
    result["trust"] = admitted.to_json()
    # The table of `verify`, with a single row.
    if result["verdict"] and not as_json:
        column = {"name": remote.name, "emulated": False, "verdict": result["verdict"]}
        render_matrix({"devices": [column]}, ResultConsole())
    if not result["shipped"]:
        print_text_or_json(as_json, result, f"not shipped: {result['path']} is unchanged")
        sys.exit(FAILED)
    # A device that has the same file already is sent nothing.
    sent = "already there"
    if result["sent"]:
        sent = f"{format_bytes(result['sent'])} sent"
    print_text_or_json(as_json, result, f"shipped: {remote.name}{result['path']} ({sent})")
    # Said last, where it is read: the file is in use from now on.
    if no_verify:
        print_status("warning: not verified on the device (--no-verify)")
