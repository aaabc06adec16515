"""The parts of every output, by the original's answers to the evaluation samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgepack.metrics.parts import find_parts
from edgepack.runtime.commands.verify import read_frames
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor
from edgepack.stages.original import Reference


def parts_of(reference: Reference, outputs: tuple[Tensor, ...]) -> Mapping[str, tuple[Part, ...]]:
    """Return the parts of every output; integers, which are compared for equality, have none."""
    return _parts(reference.answers, reference.digest, outputs)


@lru_cache(maxsize=8)
def _parts(
    answers: Path, digest: str, outputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Part, ...]]:
    # Every pass asks for them, and the answers do not change within a build.
    return {
        tensor.name: find_parts(tensor, _column(answers, i))
        if tensor.dtype.startswith("float")
        else ()
        for i, tensor in enumerate(outputs)
    }


def _column(answers: Path, index: int) -> Iterator[np.ndarray]:
    with answers.open("rb") as stream:
        for shard in read_frames(stream):
            yield shard[f"original-{index}"]
