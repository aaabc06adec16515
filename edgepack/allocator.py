"""Memory allocator of the build's process: freed memory stays with the process while it builds.

glibc maps every block of more than a few MB anew and returns it to the kernel when it is freed.
The kernel then clears each page again at its first use: a convolutional network in torch spends
half of its time on that, since each of its activations is such a block.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Blocks up to this size come from the heap, and as much free memory stays at its end. Larger blocks
# are rare enough to be mapped.
KEPT_BYTES = 256 << 20


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Reuse freed blocks while the context is open, and return free memory to the system after it.

    Without effect where the C library is not glibc.
    """
    library = _load_glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
    library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        library.malloc_trim(0)


def _load_glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    # musl has neither function.
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return None
    return library
