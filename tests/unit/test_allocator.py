"""Freed memory stays with the process while it builds."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Allocates, fills and frees 64 MB five times, as a network does with its activations, and prints
# the page faults of the last four.
FILL = """
import ctypes, resource
from contextlib import nullcontext
from edgepack.allocator import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def fill():
    block = library.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    library.free(block)

with {context}:
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(context: str) -> int:
    program = FILL.format(context=context)
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has the settings")
def test_memory_that_was_freed_during_a_build_is_not_cleared_by_the_kernel_again() -> None:
    assert count_faults("keep_freed_memory()") < count_faults("nullcontext()") / 4
