"""Bundles on the host: written here, read with the loader's own `edgepack.runtime`."""

from edgepack.bundle.write import Contents, write

__all__ = ["Contents", "write"]
