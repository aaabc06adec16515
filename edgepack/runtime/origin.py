"""Locate the files that this loader was imported from."""

from __future__ import annotations

import os
from typing import List


def origin() -> str:
    """The bundle that holds this loader, or the folder that does: an entry of `sys.path`."""
    path = os.path.abspath(__file__)
    for _ in __name__.split("."):
        path = os.path.dirname(path)
    return path


def program(bundle: str) -> List[str]:
    """Return what Python is to run, after its flags, so that this loader serves a bundle.

    A loader that came in a bundle is that file. The build host has its own in a folder, which
    takes the bundle as the first argument and runs none of its code.
    """
    path = origin()
    return [path] if os.path.isfile(path) else [path, bundle]
