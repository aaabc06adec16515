"""File of the original's answers to the evaluation set: one frame per batch.

A frame holds `original-N` for every output, `count`, and `labels` if the set has them; it is the
form in which the loader's `verify` reads an evaluation set, without the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.context.reference import Reference
from edgepack.context.samples import SampleSets
from edgepack.data.samples import Batch
from edgepack.runtime.commands.verify import decode_shards, encode_shard
from edgepack.runtime.tensor import Tensor

# Samples in a shard, and in every other pass over the evaluation set.
EVALUATION_BATCH = 16


@dataclass(frozen=True)
class AnswerBatch:
    """Answers to one batch of the evaluation set.

    Attributes:
        answers: per output, an array with the samples along axis 0.
        labels: of the samples; None for a set without labels.
        count: number of samples.
    """

    answers: Sequence[np.ndarray]
    labels: np.ndarray | None
    count: int


def encode_answers(batch: Batch, answers: Sequence[np.ndarray]) -> bytes:
    """Encode the original's answers to a batch."""
    return encode_shard(_number_answers(answers) | _collect_label_arrays(batch))


def read_answers(path: Path) -> Iterator[AnswerBatch]:
    """Yield the answers of a file batch by batch: all of them may not fit into memory."""
    with path.open("rb") as stream:
        for shard in decode_shards(stream):
            # Outputs count from 0 without a gap: original-0, original-1, ...
            answers: list[np.ndarray] = []
            while f"original-{len(answers)}" in shard:
                answers.append(shard[f"original-{len(answers)}"])
            yield AnswerBatch(answers, shard.get("labels"), int(shard["count"]))


def iterate_answers(
    samples: SampleSets, reference: Reference
) -> Iterator[tuple[Batch, Sequence[np.ndarray]]]:
    """Yield the batches of the evaluation set, each with the original's answers."""
    # Batches of the size with which the answers were stored: frame 3 belongs to batch 3.
    batches = samples.evaluation.batches(EVALUATION_BATCH)
    for batch, stored in zip(batches, read_answers(reference.answers), strict=True):
        yield batch, stored.answers


def encode_evaluation(
    samples: SampleSets, reference: Reference, inputs: Sequence[Tensor]
) -> Iterator[bytes]:
    """Yield the evaluation set with the original's answers, as frames for the loader's `verify`."""
    for batch, answers in iterate_answers(samples, reference):
        arrays = {f"input-{i}": batch.inputs[t.name] for i, t in enumerate(inputs)}
        yield encode_shard(arrays | _number_answers(answers) | _collect_label_arrays(batch))


def _number_answers(answers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"original-{i}": array for i, array in enumerate(answers)}


def _collect_label_arrays(batch: Batch) -> dict[str, np.ndarray]:
    # Outputs without a batch axis do not show the number of samples, so the frame holds it.
    arrays = {"count": np.array(batch.count)}
    if batch.labels is not None:
        arrays["labels"] = batch.labels
    return arrays
