"""Inferences that are marked for a tracer of this process.

Each runs between two system calls that have no effect and that no other code makes. The
instruction counter of `edgepack bench --instructions` looks for them.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Sequence

from .bench import open_call

if TYPE_CHECKING:
    from ..documents import MarkedDocument

# Arguments of close(2) that are never valid descriptors, so the call fails; 0x4550 spells "EP".
BEGIN, END = -0x45500001, -0x45500002
# The engine plans its memory in the first call, and Python specializes its bytecode in the first
# few; neither should be counted.
WARM_UP = 8
# Empty regions, which measure the cost of the marks themselves.
EMPTY = 2


def _mark(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass


def _nothing() -> None:
    pass


def run_marked(
    path: str, models: Sequence[str], repeats: int, threads: int, warm_up: int = WARM_UP
) -> MarkedDocument:
    """Mark, for each model, the empty regions and then `repeats` inferences.

    They run on the first reference sample.

    Args:
        path: the bundle.
        models: ONNX files to run in its place, by the bare engine; "" for the bundle itself.
        repeats: number of inferences.
        threads: threads within an operator; only the calling thread is counted.
        warm_up: number of inferences before the first region.

    Raises InputError if a model does not take the bundle's samples.
    """
    for against in models:
        call, *_ = open_call(path, against, threads)
        for _ in range(warm_up):
            call()
        # A collection within a region would be counted with it.
        gc.collect()
        gc.disable()
        for work in [_nothing] * EMPTY + [call] * repeats:
            _mark(BEGIN)
            work()
            _mark(END)
        gc.enable()
    return {"empty": EMPTY, "inferences": repeats}
