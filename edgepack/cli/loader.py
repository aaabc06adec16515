"""Execution of the loader on a bundle, on this machine or on a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.cli.boundary import COULD_NOT_RUN, print_json
from edgepack.runtime.streams import print_status, write_result

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgepack.bundle import Admitted, Demands
    from edgepack.cli.options import DeviceOptions
    from edgepack.device import Finished, Ssh


def warn_of_leftovers(devices: Sequence[Ssh]) -> None:
    """Warn of files that could not be deleted on devices."""
    for remote in devices:
        if remote.left:
            print_status(f"warning: {remote.left}")


def warn_of_loader(bundle: Admitted, runs_on: str = "") -> None:
    """Warn of a bundle whose loader matches no release known to this edgepack.

    Args:
        bundle: the bundle.
        runs_on: name of the device that will run the loader; "" for none.
    """
    if bundle.loader.release is None:
        use = "it is not run here"
        if runs_on:
            use = f"{runs_on} runs it"
        print_status(
            f"warning: the loader in this bundle matches no release known to this edgepack; {use}"
        )


def run_loader(
    bundle: Path,
    arguments: list[str],
    as_json: bool,
    demands: Demands,
    on: str | None = None,
    against: str | None = None,
    **settings: Unpack[DeviceOptions],
) -> None:
    """Run a loader's command on a bundle, and print its output.

    It runs isolated on this machine, or on the device `on`.
    """
    from contextlib import ExitStack

    from edgepack import device
    from edgepack.bundle import admit, copy_sealed
    from edgepack.device import ssh
    from edgepack.report.console import StderrConsole

    with ExitStack() as stack:
        admitted = stack.enter_context(admit(bundle, demands))
        warn_of_loader(admitted, on or "")
        host: device.Local | device.Ssh
        if on is None:
            host = stack.enter_context(device.Local())
            # A private copy also needs the engine or the choice that is sealed beside the original.
            if admitted.path != bundle:
                copy_sealed(bundle, admitted.path)
        else:
            status = StderrConsole().status("connecting")
            host = device.Ssh(ssh.parse(on), ssh.Settings(**settings), status.update)
            stack.callback(warn_of_leftovers, [host])
            stack.enter_context(host)
            stack.enter_context(status)
        if against:
            arguments = [*arguments, "--against", host.put(Path(against))]
        if as_json:
            arguments = [*arguments, "--json"]
        finished = host.run(host.put(admitted.path), *arguments)
    print_status(*finished.stderr.splitlines())
    _print_result(finished, admitted)
    # A loader that was killed by a signal has a status outside of these: -9 is SIGKILL's.
    if finished.status not in (0, 1, 2):
        sys.exit(COULD_NOT_RUN)
    sys.exit(finished.status)


def _print_result(finished: Finished, bundle: Admitted) -> None:
    """Print a loader's result; a JSON document gets the bundle's trust record."""
    text = finished.stdout.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    # Without --json the loader prints text.
    except ValueError:
        write_result(text)
        return
    if isinstance(document, dict) and "error" not in document:
        document["trust"] = bundle.to_json()
    print_json(document)
