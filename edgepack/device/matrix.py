"""Verification of one bundle on several devices, with a column for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgepack.device.device import Device, ask
from edgepack.errors import EdgepackError

# Fields of a verdict that describe the emulator and not the device.
NOT_EMULATED = ("seconds", "memory")


def verify(
    bundle: Path,
    devices: Sequence[Device],
    *,
    threads: int = 0,
    begin: Callable[[Device], None] = lambda _: None,
) -> dict[str, Any]:
    """Verify a bundle on one device after the other.

    Args:
        bundle: an intact bundle.
        devices: in the order of the columns.
        threads: threads within an operator; 0 takes every physical core.
        begin: called with each device before its verification.

    Returns {"devices": [column], "passed"}. A column is {"name", "emulated"} with the "verdict",
    or with the "error" if the bundle could not run there. The verdict of an emulated device has
    neither `seconds` nor `memory`.
    """
    columns = []
    for device in devices:
        begin(device)
        columns.append(_column(device, bundle, threads))
    passed = all("verdict" in column and column["verdict"]["passed"] for column in columns)
    return {"devices": columns, "passed": passed}


def _column(device: Device, bundle: Path, threads: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": device.name, "emulated": device.emulated}
    try:
        verdict, _ = ask(device, device.put(bundle), "verify", f"--threads={threads}")
    except EdgepackError as error:
        return {**column, "error": error.to_json()}
    if device.emulated:
        verdict = {key: value for key, value in verdict.items() if key not in NOT_EMULATED}
    return {**column, "verdict": verdict}
