"""Install the wheels of a bundle into an environment of their own.

Before anything is written, every wheel is checked: it must match the index and this Python, it must
be intact, and no two wheels may have different files of the same name.
"""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Dict, List

from ..bundle.archive import Archive
from ..bundle.engines import TENSORRT
from ..bundle.index import Index, check_file
from ..errors import BundleError
from .environment import Environment, base_python
from .tags import Tags, describe_tags, read_tags, require, this_python
from .wheel import Wheel

if TYPE_CHECKING:
    from ..documents import SetupDocument


def describe(index: Index, names: List[str]) -> str:
    """Describe wheels in one line: their number, size and Python.

    Args:
        index: of the bundle.
        names: the wheels' entries; at least one.
    """
    size = sum(index.files[name][1] for name in names)
    python = describe_tags(list(map(_tags_of, names)))
    return f"{len(names)}, {size:,} bytes, for {python}"


def install(archive: Archive, index: Index, names: List[str], folder: str) -> SetupDocument:
    """Create the environment, and return the report of `setup`.

    Args:
        archive: the open bundle.
        index: of it.
        names: the wheels' entries; at least one.
        folder: the environment's folder.
    """
    # From the names alone, before any wheel is read.
    require(list(map(_tags_of, names)), this_python())
    with ExitStack() as stack:
        wheels, digests, packages = [], {}, {}
        for name in names:
            data = io.BytesIO(check_file(archive, index, name))
            wheel = stack.enter_context(Wheel(os.path.basename(name), data))
            wheels.append(wheel)
            digests[wheel.name] = index.files[name][0]
            packages[wheel.tags.name] = wheel.tags.version
        environment = Environment(
            base_python(),
            digests,
            files_of(wheels),
            # TensorRT's Python package comes with the device's system, not as a wheel.
            any(variant.engine == TENSORRT for variant in index.variants),
        )
        target = os.path.realpath(folder)
        created = environment.make(target)
    return {
        "environment": target,
        "python": os.path.join(target, "bin", "python3"),
        "packages": packages,
        "made": created,
    }


def _tags_of(entry: str) -> Tags:
    return read_tags(os.path.basename(entry))


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
