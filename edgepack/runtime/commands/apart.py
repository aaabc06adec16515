"""Work in a process of its own, whose threads and memory end with it."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import warnings
from typing import Callable, Dict, Mapping, NoReturn, Tuple

from ..errors import DeviceError, EdgepackError


def run_apart(work: Callable[[], Mapping[str, object]], seconds: float) -> Dict[str, object]:
    """Return the result of some work, which a fork of this process does.

    A fork stays in the emulator that may run this process; a new program would leave it.

    Args:
        work: returns JSON values.
        seconds: a fork that works longer is killed.

    Raises the EdgepackError of the work, and DeviceError if the fork crashed or was killed.
    """
    sys.stderr.flush()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that the fork will lack. Only numpy's are meant, which start
        # again on demand: no engine is ever imported into this process.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _work(work, reader, writer)
    os.close(writer)
    complete = False
    try:
        data, complete = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        if not complete:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if not complete:
        raise _failure(f"it took more than {seconds:.0f} s")
    if not data:
        raise _failure(f"it ended with wait status {status}")
    document: Dict[str, object] = json.loads(data.decode("ascii"))
    error = document.get("error")
    if isinstance(error, dict):
        raise EdgepackError(error["code"], error["what"], why=error["why"], hint=error["hint"])
    return document


def _work(work: Callable[[], Mapping[str, object]], reader: int, writer: int) -> NoReturn:
    """Do the work, write its result, and end this process without the caller's clean-up."""
    try:
        # The caller's lock is among the descriptors, and must end with the caller.
        os.closerange(3, reader + 1)
        try:
            document = work()
        except EdgepackError as error:
            document = {"error": error.to_json()}
        except Exception as error:  # noqa: BLE001
            document = {"error": _failure(repr(error)).to_json()}
        with os.fdopen(writer, "wb") as file:
            file.write(json.dumps(document).encode("ascii"))
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> Tuple[bytes, bool]:
    """Read until the other end closes; return the bytes, and False if the time was over first."""
    data = b""
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([reader], [], [], remaining)[0]:
            return data, False
        piece = os.read(reader, 1 << 16)
        if not piece:
            return data, True
        data += piece


def _failure(why: str) -> DeviceError:
    return DeviceError(
        "engine-crashed",
        "the engine failed in its process",
        why=why,
        hint="python3 BUNDLE verify shows if the bundle runs here at all",
    )
