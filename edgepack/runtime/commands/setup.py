"""`setup`: an environment for the loader from the wheels in the bundle, without network.

Every wheel is checked before anything is written: that the index vouches for it, that it is for
this Python, that it is whole, and that no two of them have different files of one name.
"""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from typing import Any, Dict, List

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.engines import TENSORRT
from ..bundle.index import Index, check_file, read_index
from ..errors import BundleError, DeviceError
from ..wheels.environment import Environment, base_python
from ..wheels.tags import read_tags, require, this_python, told
from ..wheels.wheel import Wheel

FOLDER = "wheels/"


def wheels_of(index: Index) -> List[str]:
    """The entries of a bundle that are wheels, in order of their names."""
    return sorted(n for n in index.files if n.startswith(FOLDER) and n.endswith(".whl"))


def describe_wheels(index: Index) -> List[str]:
    """One line on the wheels of a bundle; none where it has none."""
    names = wheels_of(index)
    if not names:
        return []
    size = sum(index.files[name][1] for name in names)
    python = told([read_tags(os.path.basename(name)) for name in names])
    return ["{}, {:,} bytes, for {}".format(len(names), size, python)]


def setup(bundle: str, folder: str) -> Dict[str, Any]:
    """Make an environment in a folder from the wheels in a bundle.

    Args:
        bundle: its path.
        folder: where the environment is to be. Taken as it is where it is whole and from the same
            wheels; made anew where an earlier `setup` made it and it is not.

    Returns {"environment", "python", "packages": name to version, "made": bool}.

    Raises DeviceError where the bundle has no wheels, where they are for another Python, or where
    the folder cannot be written; BundleError where they are not intact.
    """
    with Archive(bundle) as archive, ExitStack() as stack:
        index = read_index(archive)
        require_checksum(archive)
        names = wheels_of(index)
        if not names:
            raise DeviceError(
                "bundle-without-wheels",
                "this bundle has no wheels to set up an environment from",
                why="it was built without --wheels",
                hint="build it with --wheels, or where there is a network:\n"
                "python3 BUNDLE info --requirements > requirements.txt",
            )
        require([read_tags(os.path.basename(name)) for name in names], this_python())
        wheels = [
            stack.enter_context(
                Wheel(os.path.basename(name), io.BytesIO(check_file(archive, index, name)))
            )
            for name in names
        ]
        environment = Environment(
            base_python(),
            {os.path.basename(name): index.files[name][0] for name in names},
            files_of(wheels),
            # TensorRT's Python package comes with the device's system, and from no wheel.
            any(variant.engine == TENSORRT for variant in index.variants),
        )
        place = os.path.realpath(folder)
        made = environment.make(place)
    return {
        "environment": place,
        "python": os.path.join(place, "bin", "python3"),
        "packages": {wheel.tags.name: wheel.tags.version for wheel in wheels},
        "made": made,
    }


def files_of(wheels: List[Wheel]) -> Dict[str, Wheel]:
    """Path below site-packages to the wheel that has it. Raises BundleError where two clash."""
    files: Dict[str, Wheel] = {}
    for wheel in wheels:
        for path in wheel.files:
            other = files.setdefault(path, wheel)
            # Several packages may bring the same empty `__init__.py` of the folder they share.
            if other is not wheel and other.digest(path) != wheel.digest(path):
                raise _clash(other, wheel, path)
    for path, wheel in files.items():
        parent = os.path.dirname(path)
        while parent:
            if parent in files:
                raise _clash(files[parent], wheel, parent)
            parent = os.path.dirname(parent)
    return files


def _clash(one: Wheel, other: Wheel, path: str) -> BundleError:
    return BundleError(
        "wheels-clash",
        "two wheels have different files of one name",
        why="{}: in {} and in {}".format(path, one.name, other.name),
        hint="build the bundle again; its requirements must not name two builds of one package",
    )
