"""Packages of this host that a process on a device may import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from edgepack.errors import EdgepackError, missing_package
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import OPENVINO
from edgepack.runtime.bundle.index import check_file, read_index

PACKAGES = ("numpy", "onnxruntime")
# Packages that a preprocessing may need, each with those that it imports itself.
DECODERS: Mapping[str, tuple[str, ...]] = {
    "pillow": ("pillow",),
    "tokenizers": ("tokenizers",),
    "soundfile": ("soundfile", "cffi", "pycparser", "typing_extensions"),
}


def find_packages(bundle: str) -> tuple[str, ...]:
    """Return the packages besides PACKAGES that a bundle needs: an engine, and decoders.

    An engine that is not installed is left out: the loader skips its variants, with the reason.
    """
    packages: list[str] = []
    try:
        with Archive(bundle) as archive:
            index = read_index(archive)
            if any(variant.engine == OPENVINO for variant in index.variants):
                packages += list_installed([OPENVINO])
            if index.preprocessing is None:
                return tuple(packages)
            text = check_file(archive, index, "requirements.txt").decode("utf-8", "replace")
    except EdgepackError:
        # The loader reads the file again, and reports the fault.
        return ()
    for line in text.splitlines():
        # "pillow>=9.1" is the requirement of the package pillow.
        packages += DECODERS.get(line.partition(">")[0], ())
    return tuple(packages)


def list_decoders() -> dict[str, str]:
    """Return the versions of all packages in DECODERS that this host has."""
    versions = {}
    for packages in DECODERS.values():
        versions.update(list_installed(packages))
    return versions


def list_installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that this host has."""
    versions = {}
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
