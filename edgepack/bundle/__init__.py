"""Bundles on the host: written here, read with the loader's own `edgepack.runtime`."""

from edgepack.bundle.read import check, inspect
from edgepack.bundle.write import Contents, OtherSize, write

__all__ = ["Contents", "OtherSize", "check", "inspect", "write"]
