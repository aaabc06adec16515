"""This machine, in a process that has nothing but what a device has."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from edgepack.device.isolated import Isolated
from edgepack.errors import missing_package

PACKAGES = ("numpy", "onnxruntime")


def _top_level(package: str) -> set[Path]:
    """Files and folders that a distribution put at the top of site-packages."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise missing_package(package, "all", "running a bundle on this machine") from error
    names = {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "bin")}
    return {Path(str(found.locate_file(name))) for name in names if name != "__pycache__"}


def installed() -> set[Path]:
    """What this machine has of the packages that the loader needs."""
    return {path for package in PACKAGES for path in _top_level(package)}


class Local(Isolated):
    """This machine as a device.

    Args:
        python: the interpreter.
        runs_bundle: execute the loader inside the bundle; see `Isolated`.
    """

    def __init__(self, python: str = sys.executable, *, runs_bundle: bool = False) -> None:
        super().__init__("this machine", (python,), installed(), runs_bundle=runs_bundle)
