"""Threads that share the work on tensors and layers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

# More threads would wait for memory, and each holds the columns of a layer.
MOST_THREADS = 4


@contextmanager
def open_workers() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads, each of which multiplies matrices by itself.

    numpy lets other threads run while it computes. One thread for each product leaves the cores to
    the pool, and makes results independent of the number of cores.
    """
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        yield pool
