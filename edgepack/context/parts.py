"""Split every output into parts, by the original's answers to the evaluation samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from edgepack.context.answers import read_answers
from edgepack.context.reference import Reference
from edgepack.metrics.parts import Moments, divide
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor


def divide_outputs(
    reference: Reference, outputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Part, ...]]:
    """Return the parts of every output; integers have none, as they are compared for equality."""
    return _divide_outputs(reference.answers, reference.digest, outputs)


@lru_cache(maxsize=8)
def _divide_outputs(
    answers: Path, digest: str, outputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Part, ...]]:
    # Cached, since every pass needs them and the answers do not change within a build.
    # Parts differ in the variance of their elements, which a single pass over the answers gives.
    moments: dict[int, Moments] = {}
    for i, tensor in enumerate(outputs):
        if tensor.dtype.startswith("float"):
            moments[i] = Moments(tensor)
    # Read once for all outputs: the answers can be larger than the memory.
    for batch in read_answers(answers):
        for i, output_moments in moments.items():
            output_moments.update(batch.answers[i])
    parts: dict[str, tuple[Part, ...]] = {}
    for i, tensor in enumerate(outputs):
        parts[tensor.name] = ()
        if i in moments:
            parts[tensor.name] = divide(moments[i])
    return parts
