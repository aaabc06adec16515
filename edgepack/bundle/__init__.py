"""Bundles on the host: written here, read with the loader's own `edgepack.runtime`."""

from edgepack.bundle.read import inspect
from edgepack.bundle.write import Contents, write

__all__ = ["Contents", "inspect", "write"]
