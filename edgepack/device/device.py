"""A device: anything that can run the loader's `verify --json` on a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgepack.errors import DeviceError, EdgepackError


@dataclass(frozen=True)
class Finished:
    """A command that ended on a device.

    Attributes:
        status: its exit status; negative where a signal ended it.
        stdout: what it wrote there.
        stderr: the same of stderr.
    """

    status: int
    stdout: bytes
    stderr: str


class Device(Protocol):
    """Two methods: put a file there, run a command of a bundle there."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def emulated(self) -> bool:
        """Whether its answers are those of the device and its speed is not."""

    def put(self, file: Path) -> str:
        """Make a local file available on the device; returns its path there."""

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a loader's command on a bundle there, its standard input fed piece by piece.

        A device that is reached by ssh runs `python3 BUNDLE ARGUMENTS`; on this machine the bundle
        is read by edgepack's own loader, and none of its code runs.
        """


def ask(
    device: Device, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()
) -> tuple[dict[str, Any], int]:
    """Run a command of a bundle with `--json`; returns its document and its exit status.

    Raises what the loader refused with, as it said it, and DeviceError where it died.
    """
    command, *rest = arguments
    finished = device.run(bundle, command, "--json", *rest, stdin=stdin)
    try:
        document: dict[str, Any] = json.loads(finished.stdout)
    except ValueError as error:
        raise _died(device, arguments, finished) from error
    if "error" in document:
        told = document["error"]
        raise EdgepackError(told["code"], told["what"], why=told["why"], hint=told["hint"])
    if finished.status not in (0, 1):
        raise _died(device, arguments, finished)
    return document, finished.status


def _died(device: Device, arguments: Sequence[str], finished: Finished) -> DeviceError:
    status = finished.status
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    return DeviceError(
        "loader-died",
        f"the loader died on {device.name} in `{' '.join(arguments)}`",
        why="\n".join([ended, *finished.stderr.strip().splitlines()[-12:]]),
        hint="a crash in native code is most often too little memory or an unfit engine wheel; "
        "where neither is so, it is a fault of the engine's: leave out a pass, as `half` on a CPU",
    )
