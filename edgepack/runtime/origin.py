"""Locate the files that this loader was imported from."""

from __future__ import annotations

import os
from typing import List


def origin() -> str:
    """Return the bundle or folder that contains this loader: an entry of `sys.path`."""
    path = os.path.abspath(__file__)
    for _ in __name__.split("."):
        path = os.path.dirname(path)
    return path


def program(bundle: str) -> List[str]:
    """Return the arguments, after Python's flags, that start this loader on a bundle.

    A loader inside a bundle is started by running that file. The build host's own copy lies in a
    folder; it takes the bundle as its first argument and runs none of the bundle's code.
    """
    path = origin()
    if os.path.isfile(path):
        return [path]
    return [path, bundle]
