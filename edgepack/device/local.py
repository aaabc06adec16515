"""This machine as a device, in an isolated process."""

from __future__ import annotations

import sys

from edgepack.device.isolated import Isolated
from edgepack.device.packages import list_files


class Local(Isolated):
    """Machine that edgepack runs on, as a device.

    Args:
        python: the interpreter.
        runs_bundle: execute the loader inside the bundle; see `Isolated`.
    """

    def __init__(self, python: str = sys.executable, *, runs_bundle: bool = False) -> None:
        super().__init__("this machine", (python,), list_files, runs_bundle=runs_bundle)
