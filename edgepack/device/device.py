"""Interface of a device: anything that can run the loader's `verify --json` on a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgepack.errors import DeviceError, EdgepackError
from edgepack.runtime.parity.verdict import RANDOM, RANDOM_TEXT, decide

if TYPE_CHECKING:
    from edgepack.runtime.documents import Comparison, Question, Reason, Verdict

# Code of the reason that edgepack adds to the document of a loader without verdicts.
DERIVED = "older-loader"


@dataclass(frozen=True)
class Finished:
    """Result of a command on a device.

    Attributes:
        status: exit status; negative if a signal ended the command.
        stdout: its standard output.
        stderr: its standard error.
    """

    status: int
    stdout: bytes
    stderr: str


class Device(Protocol):
    """Machine that takes files and runs a bundle's commands."""

    @property
    def name(self) -> str:
        """Return the device's name for the report."""

    @property
    def emulated(self) -> bool:
        """Return True if the answers are those of the device but the speed is not."""

    def put(self, file: Path) -> str:
        """Make a local file available on the device and return its path there."""

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        """Run a loader's command on a bundle, feeding its standard input piece by piece.

        An ssh device runs `python3 BUNDLE ARGUMENTS`. On this machine edgepack's own loader reads
        the bundle, and none of the bundle's code runs.
        """


def ask(
    device: Device, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()
) -> tuple[dict[str, Any], int]:
    """Run a command of a bundle with `--json` and return its document and exit status.

    Raises the loader's own error with its code, and DeviceError if the loader died.
    """
    # ask(device, "/tmp/m.edgepack", "verify", "--threads=1") runs `verify --json --threads=1`.
    # Status 0 and 1 come with a verdict, 2 with {"error": {"code": ..., "what": ...}}.
    command, *rest = arguments
    finished = device.run(bundle, command, "--json", *rest, stdin=stdin)
    try:
        document: dict[str, Any] = json.loads(finished.stdout)
    except ValueError as error:
        raise _died(device, arguments, finished) from error
    if "error" in document:
        fault = document["error"]
        raise EdgepackError(fault["code"], fault["what"], why=fault["why"], hint=fault["hint"])
    if finished.status not in (0, 1):
        raise _died(device, arguments, finished)
    return document, finished.status


def verify_bundle(
    device: Device, bundle: str, *options: str, stdin: Iterable[bytes] = ()
) -> Verdict:
    """Return the verdict of a device on a bundle, passed or not; raises as `ask` does."""
    document, _ = ask(device, bundle, "verify", *options, stdin=stdin)
    if "verdict" not in document:
        _derive_verdict(document)
    return cast("Verdict", document)


def _derive_verdict(document: dict[str, Any]) -> None:
    """Add the verdict to the document of an older loader, which states `passed` and `proven`."""
    # {"passed": True, "proven": False} becomes UNVERIFIED for its random samples.
    doubts: list[Reason] = []
    if not document.get("proven", True):
        doubts.append({"code": RANDOM, "text": RANDOM_TEXT})
    verdict, reasons = decide([document["quality"], document["fidelity"]], doubts)
    # Also beside PASS: such a loader never asked about the preprocessing.
    text = "the bundle's older loader states no verdict: this one follows from its gates"
    document["verdict"] = verdict
    document["reasons"] = [*reasons, {"code": DERIVED, "text": text}]


def require_fidelity(verdict: Verdict) -> Question:
    """Return the fidelity of a verdict. Raises ValueError for that of a draft without answers."""
    fidelity = verdict["fidelity"]
    if fidelity is None:
        raise ValueError("a draft without the build host's answers has no fidelity")
    return fidelity


def compare_latency(device: Device, bundle: str, against: str, *options: str) -> Comparison:
    """Return a bundle's latencies beside those of an ONNX file; raises as `ask` does."""
    latency, _ = ask(device, bundle, "bench", "--against", against, *options)
    return cast("Comparison", latency)


def _died(device: Device, arguments: Sequence[str], finished: Finished) -> DeviceError:
    status = finished.status
    reason = f"signal {-status}" if status < 0 else f"exit status {status}"
    return DeviceError(
        "loader-died",
        f"the loader died on {device.name} in `{' '.join(arguments)}`",
        why="\n".join([reason, *finished.stderr.strip().splitlines()[-12:]]),
        hint="a crash in native code is most often caused by too little memory or an engine wheel "
        "for another CPU; otherwise it is a bug of the engine: remove a pass, such as `half` on a "
        "CPU",
    )
