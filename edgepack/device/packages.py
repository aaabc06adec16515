"""Packages of this host that a process on a device may import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from edgepack.errors import EdgepackError, missing_package
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index

PACKAGES = ("numpy", "onnxruntime")
# Kind of preprocessing -> the packages that it needs besides.
DECODERS: Mapping[str, tuple[str, ...]] = {"picture": ("pillow",)}


def find_decoders(bundle: str) -> tuple[str, ...]:
    """Return the packages that a bundle needs for its preprocessing, besides PACKAGES."""
    try:
        with Archive(bundle) as archive:
            preprocessing = read_index(archive).preprocessing
    except EdgepackError:
        # The loader reads the file again, and reports the fault.
        return ()
    if preprocessing is None:
        return ()
    return DECODERS.get(str(preprocessing.value.get("kind")), ())


def list_decoders() -> dict[str, str]:
    """Return the versions of all packages in DECODERS that this host has."""
    versions = {}
    for packages in DECODERS.values():
        for package in packages:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
    return versions


def list_files(packages: Iterable[str]) -> set[Path]:
    """List the installed files and folders of packages. Raises HostError if one is missing."""
    return set().union(*map(_top_level, packages))


def _top_level(package: str) -> set[Path]:
    """List the files and folders of a distribution at the top of site-packages."""
    # numpy's are numpy, numpy.libs and numpy-2.0.2.dist-info. Scripts are in ../../../bin.
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise missing_package(package, "all", "Running the bundle on this machine") from error
    names = {path.parts[0] for path in distribution.files or ()} - {"..", "bin", "__pycache__"}
    return {Path(str(distribution.locate_file(name))) for name in names}
