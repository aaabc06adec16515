"""Verification of one bundle on several devices, with a column for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgepack.device.device import Device, verify_bundle
from edgepack.errors import EdgepackError
from edgepack.runtime.parity.verdict import FAIL, PASS, UNVERIFIED

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

    Returns {"devices": [column], "verdict", "passed"}. A column is {"name", "emulated"} with the
    "verdict", or with the "error" if the bundle could not run there; the verdict on all of them is
    then None. The verdict of an emulated device has neither `seconds` nor `memory`.
    """
    columns = []
    for device in devices:
        begin(device)
        columns.append(_column(device, bundle, threads))
    passed = all("verdict" in column and column["verdict"]["passed"] for column in columns)
    return {"devices": columns, "verdict": _sum_up(columns), "passed": passed}


def _sum_up(columns: Sequence[dict[str, Any]]) -> str | None:
    """Return the worst verdict of the columns; None if one of them has none."""
    verdicts = {column["verdict"]["verdict"] for column in columns if "verdict" in column}
    if any("error" in column for column in columns):
        return None
    for verdict in (FAIL, UNVERIFIED):
        if verdict in verdicts:
            return verdict
    return PASS


def _column(device: Device, bundle: Path, threads: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": device.name, "emulated": device.emulated}
    try:
        verdict = verify_bundle(device, device.put(bundle), f"--threads={threads}")
    except EdgepackError as error:
        return {**column, "error": error.to_json()}
    if device.emulated:
        shown = {key: value for key, value in verdict.items() if key not in NOT_EMULATED}
        return {**column, "verdict": shown}
    return {**column, "verdict": verdict}
