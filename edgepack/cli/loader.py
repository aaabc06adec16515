"""Running the loader on a bundle, here or on a device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.cli.boundary import COULD_NOT_RUN, print_json
from edgepack.runtime.streams import say, show

if TYPE_CHECKING:
    from edgepack.bundle import Admitted, Demands
    from edgepack.device import Finished


def warn_of_what_is_left(devices: list[Any]) -> None:
    for there in devices:
        if there.left:
            say(f"warning: {there.left}")


def warn_of_loader(bundle: Admitted, runs_on: str = "") -> None:
    """Warn of a loader from no release that this one knows.

    Args:
        bundle: that holds it.
        runs_on: what will run it; "" where nothing does.
    """
    if bundle.loader.release is None:
        where = f"{runs_on} runs it" if runs_on else "it is not run here"
        say(
            "warning: the loader in this bundle is from no release that this edgepack knows; "
            f"{where}"
        )


def through_loader(
    bundle: Path,
    arguments: list[str],
    as_json: bool,
    demands: Demands,
    on: str | None = None,
    against: str | None = None,
    **settings: Any,
) -> None:
    """Run a loader's command on a bundle, isolated here or on a device, and show what it prints."""
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
            if admitted.path != bundle:
                copy_engine(bundle, admitted.path)
        else:
            status = StderrConsole().status("connecting")
            host = device.Ssh(ssh.parse(on), ssh.Settings(**settings), status.update)
            stack.callback(warn_of_what_is_left, [host])
            stack.enter_context(host)
            stack.enter_context(status)
        if against:
            arguments = [*arguments, "--against", host.put(Path(against))]
        finished = host.run(host.put(admitted.path), *arguments, *(["--json"] if as_json else []))
    say(*finished.stderr.splitlines())
    _show(finished, admitted)
    # A loader that died by a signal could not run.
    sys.exit(finished.status if finished.status in (0, 1, 2) else COULD_NOT_RUN)


def _show(finished: Finished, bundle: Admitted) -> None:
    """Print a loader's result, its document completed by what vouches for the bundle."""
    text = finished.stdout.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        show(text)
        return
    if isinstance(document, dict) and "error" not in document:
        document["trust"] = bundle.to_json()
    print_json(document)
