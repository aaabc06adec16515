"""`setup`: create an environment from the wheels in the bundle, without network."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.index import Index, read_index
from ..errors import DeviceError

if TYPE_CHECKING:
    from ..documents import SetupDocument

FOLDER = "wheels/"


def wheels_of(index: Index) -> List[str]:
    """Return the wheel entries of a bundle, sorted by name."""
    # The folder also holds a requirements.txt with the wheels' versions and hashes.
    return sorted(n for n in index.files if n.startswith(FOLDER) and n.endswith(".whl"))


def describe_wheels(index: Index) -> List[str]:
    """Describe the wheels of a bundle in one line; no line if it has none."""
    names = wheels_of(index)
    if not names:
        return []
    # A bundle without wheels does not carry this module.
    from ..wheels.install import describe

    return [describe(index, names)]


def setup(bundle: str, folder: str) -> SetupDocument:
    """Create an environment in a folder from the wheels in a bundle.

    Args:
        bundle: its path.
        folder: the environment's folder. An intact one from the same wheels stays unchanged; any
            other one from an earlier `setup` is replaced.

    Returns {"environment", "python", "packages": name -> version, "made": bool}.

    Raises DeviceError if the bundle has no wheels, if they are for another Python, or if the
    folder cannot be written; BundleError if they are not intact.
    """
    with Archive(bundle) as archive:
        index = read_index(archive)
        require_checksum(archive)
        names = wheels_of(index)
        if not names:
            raise DeviceError(
                "bundle-without-wheels",
                "this bundle has no wheels to set up an environment from",
                why="it was built without --wheels",
                hint="build it with --wheels, or install from the network:\n"
                "python3 BUNDLE info --requirements > requirements.txt",
            )
        from ..wheels.install import install

        return install(archive, index, names, folder)
