"""This machine as a device, in an isolated process."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from edgepack.device.isolated import Isolated
from edgepack.errors import missing_package

PACKAGES = ("numpy", "onnxruntime")


def _top_level(package: str) -> set[Path]:
    """List the files and folders of a distribution at the top of site-packages."""
    # numpy's are numpy, numpy.libs and numpy-2.0.2.dist-info. Scripts are in ../../../bin.
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise missing_package(package, "all", "running a bundle on this machine") from error
    names = {path.parts[0] for path in distribution.files or ()} - {"..", "bin", "__pycache__"}
    return {Path(str(distribution.locate_file(name))) for name in names}


def installed() -> set[Path]:
    """List the installed files and folders of the packages that the loader needs."""
    return set().union(*map(_top_level, PACKAGES))


class Local(Isolated):
    """Machine that edgepack runs on, as a device.

    Args:
        python: the interpreter.
        runs_bundle: execute the loader inside the bundle; see `Isolated`.
    """

    def __init__(self, python: str = sys.executable, *, runs_bundle: bool = False) -> None:
        super().__init__("this machine", (python,), installed(), runs_bundle=runs_bundle)
