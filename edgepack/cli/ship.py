"""`edgepack ship`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.boundary import FAILED, boundary, print_json
from edgepack.cli.loader import warn_of_loader, warn_of_what_is_left
from edgepack.cli.options import as_json, bundle_file, over_ssh, threads, trusted
from edgepack.runtime.streams import say

if TYPE_CHECKING:
    from edgepack.bundle import Demands


@click.command(short_help="Prove a BUNDLE on a device, then put it in its place.")
@bundle_file
@click.argument("device", metavar="ssh://[USER@]HOST[:PORT]/PATH")
@click.option("--no-verify", is_flag=True, help="Ship it without a proof that it runs there.")
@threads
@over_ssh
@as_json
@boundary
@trusted
def ship(
    bundle: Path,
    device: str,
    no_verify: bool,
    threads: int,
    as_json: bool,
    demands: Demands,
    **settings: Any,
) -> None:
    """Prove a BUNDLE on a device, and only then put it in its place there, by one rename.

    PATH is the file's, or a folder's; it begins in the home where it is written as /~/PATH. What
    was there before stays where the proof fails. The bundle's .sha256 goes there with it, and its
    .sig where there is one.
    """
    from contextlib import ExitStack

    from edgepack.bundle import admit
    from edgepack.device import ssh
    from edgepack.report import render_matrix
    from edgepack.report.console import StderrConsole
    from edgepack.report.figures import bytes_text

    address = ssh.parse(device, path=True)
    console = StderrConsole()
    status = console.status("connecting")
    with ExitStack() as stack:
        admitted = stack.enter_context(admit(bundle, demands))
        there = ssh.Ssh(address, ssh.Settings(**settings), status.update)
        warn_of_loader(admitted, "" if no_verify else there.name)
        stack.callback(warn_of_what_is_left, [there])
        stack.enter_context(there)
        stack.enter_context(status)
        found = ssh.ship(
            there, admitted.path, address.path, threads=threads, prove=not no_verify,
            digest=admitted.sha256, signature=admitted.signed.decode("ascii", "replace"),
        )  # fmt: skip
    found["trust"] = admitted.to_json()
    if found["verdict"]:
        column = {"name": there.name, "emulated": False, "verdict": found["verdict"]}
        render_matrix({"devices": [column]}, console)
    if as_json:
        print_json(found)
    if not found["shipped"]:
        say(f"not shipped: {found['path']} is as it was")
        sys.exit(FAILED)
    sent = f"{bytes_text(found['sent'])} sent" if found["sent"] else "it was there already"
    say(f"shipped: {there.name}{found['path']} ({sent})")
    if no_verify:
        say("warning: nothing was proved there; --no-verify was given")
