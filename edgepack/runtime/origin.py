"""Where this loader was imported from."""

from __future__ import annotations

import os


def origin() -> str:
    """The bundle that holds this loader, or the folder that does: an entry of `sys.path`."""
    path = os.path.abspath(__file__)
    for _ in __name__.split("."):
        path = os.path.dirname(path)
    return path
