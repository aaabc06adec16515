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


def is_own(bundle: str) -> bool:
    """Return True if this loader was imported from that bundle, whose code it then may run."""
    path = origin()
    try:
        return os.path.isfile(path) and os.path.samefile(path, bundle)
    except OSError:  # it was removed meanwhile
        return False


def program(bundle: str) -> List[str]:
    """Return the arguments, after Python's flags, that start this loader on a bundle.

    A loader inside a bundle is started by running that file. The build host's own copy lies in a
    folder; it takes the bundle as its first argument and runs none of the bundle's code.
    """
    path = origin()
    if os.path.isfile(path):
        return [path]
    return [path, bundle]
