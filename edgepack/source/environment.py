"""Record the environment variables that the user's code reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from edgepack.source.code import is_stdlib, is_users


@contextmanager
def watch_environment() -> Iterator[dict[str, str | None]]:
    """Record the variables that the user's code reads inside the context, with their values.

    Every module shares the object `os.environ`, so its class is replaced for a while. Variables
    read by libraries for their own purposes are ignored, since they differ from shell to shell.

    Yields:
        The value of each variable, None if it is not set.
    """
    read: dict[str, str | None] = {}
    kind: Any = type(os.environ)

    class Recorded(kind):  # type: ignore[misc]
        def __getitem__(self, name: str) -> Any:
            self._record(name)
            return super().__getitem__(name)

        def __contains__(self, name: object) -> bool:
            self._record(name)
            return bool(super().__contains__(name))

        def _record(self, name: object) -> None:
            # Frame 0 is this method, 1 the one of the mapping, 2 its caller.
            if isinstance(name, str) and _is_read_by_user(sys._getframe(2)):
                read[name] = values.get(name)

    environ: Any = os.environ
    values = dict(environ)
    environ.__class__ = Recorded
    try:
        yield read
    finally:
        environ.__class__ = kind


def _is_read_by_user(frame: FrameType | None) -> bool:
    """Return True if the nearest caller outside the standard library is the user's code."""
    # `os.getenv(name)` in model.py passes through os.py and _collections_abc.py first.
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith("<"):
            path = Path(os.path.realpath(file))
            if not is_stdlib(path):
                return is_users(path)
        frame = frame.f_back
    return False
