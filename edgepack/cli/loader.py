"""Execution of the loader on a bundle, on this machine or on a device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.cli.boundary import COULD_NOT_RUN, print_json
from edgepack.runtime.streams import print_status, write_result

if TYPE_CHECKING:
    from edgepack.bundle import Admitted, Demands
    from edgepack.device import Finished


def warn_of_leftovers(devices: list[Any]) -> None:
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
        use = f"{runs_on} runs it" if runs_on else "it is not run here"
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
    **settings: Any,
) -> None:
    """Run a loader's command on a bundle, and print its output.

    It runs isolated on this machine, or on the device `on`.
    """
    from contextlib import ExitStack

    from edgepack import device
    from edgepack.bundle import admit, copy_engine
    from edgepack.device import ssh
    from edgepack.report.console import StderrConsole

    with ExitStack() as stack:
        admitted = stack.enter_context(admit(bundle, demands))
        warn_of_loader(admitted, on or "")
        host: device.Local | device.Ssh
        if on is None:
            host = stack.enter_context(device.Local())
            # A private copy also needs the TensorRT engine that is sealed beside the original.
            if admitted.path != bundle:
                copy_engine(bundle, admitted.path)
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
    # A loader that was killed by a signal has a status outside of these.
    sys.exit(finished.status if finished.status in (0, 1, 2) else COULD_NOT_RUN)


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
