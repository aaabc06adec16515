"""Split every output into parts, by the original's answers to the evaluation samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from edgepack.metrics.parts import Moments, divide
from edgepack.runtime.commands.verify import read_frames
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor
from edgepack.stages.original import Reference


def output_parts(
    reference: Reference, outputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Part, ...]]:
    """Return the parts of every output; integers have none, as they are compared for equality."""
    return _parts(reference.answers, reference.digest, outputs)


@lru_cache(maxsize=8)
def _parts(
    answers: Path, digest: str, outputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Part, ...]]:
    # Cached, since every pass needs them and the answers do not change within a build.
    parts: dict[str, tuple[Part, ...]] = {tensor.name: () for tensor in outputs}
    # Read once for all outputs: the answers can be larger than the memory.
    moments = {i: Moments(t) for i, t in enumerate(outputs) if t.dtype.startswith("float")}
    with answers.open("rb") as stream:
        for shard in read_frames(stream):
            for i, of_output in moments.items():
                of_output.update(shard[f"original-{i}"])
    parts.update({outputs[i].name: divide(of_output) for i, of_output in moments.items()})
    return parts
