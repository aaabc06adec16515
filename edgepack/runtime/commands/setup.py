"""`setup`: create an environment from the wheels in the bundle, without network.

Before anything is written, every wheel is checked: it must match the index and this Python, it must
be intact, and no two wheels may have different files of the same name.
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
from ..wheels.tags import describe_tags, read_tags, require, this_python
from ..wheels.wheel import Wheel

FOLDER = "wheels/"


def wheels_of(index: Index) -> List[str]:
    """Return the wheel entries of a bundle, sorted by name."""
    return sorted(n for n in index.files if n.startswith(FOLDER) and n.endswith(".whl"))


def describe_wheels(index: Index) -> List[str]:
    """Describe the wheels of a bundle in one line; no line if it has none."""
    names = wheels_of(index)
    if not names:
        return []
    size = sum(index.files[name][1] for name in names)
    python = describe_tags([read_tags(os.path.basename(name)) for name in names])
    return [f"{len(names)}, {size:,} bytes, for {python}"]


def setup(bundle: str, folder: str) -> Dict[str, Any]:
    """Create an environment in a folder from the wheels in a bundle.

    Args:
        bundle: its path.
        folder: the environment's folder. An intact one from the same wheels stays unchanged; any
            other one from an earlier `setup` is replaced.

    Returns {"environment", "python", "packages": name -> version, "made": bool}.

    Raises DeviceError if the bundle has no wheels, if they are for another Python, or if the
    folder cannot be written; BundleError if they are not intact.
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
                hint="build it with --wheels, or install from the network:\n"
                "python3 BUNDLE info --requirements > requirements.txt",
            )
        # From the names alone, before any wheel is read.
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
            # TensorRT's Python package comes with the device's system, not as a wheel.
            any(variant.engine == TENSORRT for variant in index.variants),
        )
        target = os.path.realpath(folder)
        created = environment.make(target)
    return {
        "environment": target,
        "python": os.path.join(target, "bin", "python3"),
        "packages": {wheel.tags.name: wheel.tags.version for wheel in wheels},
        "made": created,
    }


def files_of(wheels: List[Wheel]) -> Dict[str, Wheel]:
    """Map each path below site-packages to its wheel. Raises BundleError if two clash."""
    files: Dict[str, Wheel] = {}
    for wheel in wheels:
        for path in wheel.files:
            other = files.setdefault(path, wheel)
            # Several packages may contain the same empty `__init__.py` of a shared folder.
            if other is not wheel and other.digest(path) != wheel.digest(path):
                raise _clash(other, wheel, path)
    # A file of one wheel may not be a folder of another: `a` beside `a/b.py`.
    for path, wheel in files.items():
        parent = os.path.dirname(path)
        while parent:
            if parent in files:
                raise _clash(files[parent], wheel, parent)
            parent = os.path.dirname(parent)
    return files


def _clash(first: Wheel, second: Wheel, path: str) -> BundleError:
    return BundleError(
        "wheels-clash",
        "two wheels have different files of the same name",
        why=f"{path}: in {first.name} and in {second.name}",
        hint="build the bundle again, with one build of each package in its requirements",
    )
