"""Inferences that whoever traces this process can tell from everything around them.

Each stands between two system calls that no program makes and that do nothing. The counter of
instructions in `edgepack bench --instructions` looks for them.
"""

from __future__ import annotations

import gc
import os
from typing import Any, Dict

from ..errors import EdgepackError, InputError
from .bench import open_call

# Descriptors that none can be: close fails. "EP" stands in them.
BEGIN, END = -0x45500001, -0x45500002
# The engine lays out its memory at the first call, and Python adapts its code to the first few.
WARM_UP = 8
# Regions with nothing in them: what the marks themselves cost.
EMPTY = 2


def _mark(which: int) -> None:
    try:
        os.close(which)
    except OSError:
        pass


def _nothing() -> None:
    pass


def child(path: str, against: str, repeats: int, threads: int) -> Dict[str, Any]:
    """Mark the empty regions, then so many inferences, all on the first reference sample.

    Args:
        path: the bundle.
        against: an ONNX file to run in its place, by the bare engine; empty for none.
        repeats: inferences.
        threads: threads within an operator; what is counted is the calling one.

    Raises InputError where the other model does not take the bundle's samples.
    """
    call, *_ = open_call(path, against, threads)
    try:
        for _ in range(WARM_UP):
            call()
    except EdgepackError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise InputError(
            "against-failed",
            "{} does not run on the bundle's reference samples".format(against),
            why=str(error).strip(),
            hint="--against takes a model with the same inputs, by name, type and shape",
        ) from error
    gc.collect()
    gc.disable()
    for work in [_nothing] * EMPTY + [call] * repeats:
        _mark(BEGIN)
        work()
        _mark(END)
    return {"empty": EMPTY, "inferences": repeats}
