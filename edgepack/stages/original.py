"""Stage `original`: the original model's answers, which everything later is held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgepack.bundle import OtherSize
from edgepack.cache import Cache, Entry
from edgepack.data.samples import Batch, Samples
from edgepack.ledger import Ledger, Stage
from edgepack.request import Request
from edgepack.runtime.commands.verify import frame, read_frames
from edgepack.runtime.session.feeds import fixed_batch
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages.samples import SampleSets, evaluation_of
from edgepack.stages.sizes import answer_sizes

EVALUATION_BATCH = 16
# Reference samples ship: as many as fit, but no fewer than tell something.
REFERENCE_BYTES = 4 << 20
REFERENCE_MIN, REFERENCE_MAX = 4, 64


@dataclass(frozen=True)
class Reference:
    """The samples that the bundle will carry, and the original's answers to all of them.

    Attributes:
        feeds: whole feeds, one call each.
        original: per feed, the outputs of the original model.
        answers: the original's answers on the evaluation set, in frames, batch by batch.
        labelled: whether the evaluation samples have labels.
        digest: of everything that decides these answers.
        sizes: the original's answers at one other size of every dynamic axis.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    original: Sequence[Sequence[np.ndarray]]
    answers: Path
    labelled: bool
    digest: str
    sizes: Sequence[OtherSize] = ()


def ask_original(
    request: Request, found: Source, inputs: tuple[Tensor, ...], samples: SampleSets,
    cache: Cache, ledger: Ledger,
) -> Reference:  # fmt: skip
    """Run the original model on every evaluation sample, and choose the reference samples."""
    count, samples_digest = evaluation_of(samples)
    with ledger.stage("original", count) as stage:
        size = sum(_feed_bytes(tensor) for tensor in inputs)
        fitting = min(REFERENCE_MAX, max(REFERENCE_MIN, REFERENCE_BYTES // max(size, 1)))
        wanted = min(count, request.reference_samples or fitting)
        key = cache.key(
            "original",
            {
                "source": found.digest,
                "samples": samples_digest,
                "inputs": [tensor.to_json() for tensor in inputs],
                "wanted": wanted,
            },
        )
        entry = cache.get("original", key)
        if entry is None:
            entry = _run_original(
                found, samples.evaluation, inputs, count, wanted, stage, cache, key
            )
        else:
            stage.set(status="cached")
        feeds, original = _read_reference(entry, inputs)
        stage.note(
            f"the original model answered {count:,} samples; {len(feeds)} of them ship as reference"
        )
    sizes = answer_sizes(request, found, inputs, feeds[0], key, cache)
    labelled = bool(entry.document["labelled"])
    return Reference(feeds, original, entry.folder / "answers.bin", labelled, key, sizes)


def _feed_bytes(tensor: Tensor) -> int:
    sizes = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _run_original(
    found: Source,
    samples: Samples,
    inputs: tuple[Tensor, ...],
    count: int,
    wanted: int,
    stage: Stage,
    cache: Cache,
    key: str,
) -> Entry:
    # Spread over the set, since samples are often sorted by class.
    chosen = {i * count // wanted for i in range(wanted)}
    kept: list[dict[str, np.ndarray]] = []
    document = {"labelled": True}

    def answers(stream: BinaryIO) -> None:
        """Written as they come: all of them need not fit into memory."""
        seen = 0
        for batch in samples.batches(EVALUATION_BATCH):
            outputs = found.run(batch.inputs)
            stream.write(frame({f"original-{i}": array for i, array in enumerate(outputs)}))
            document["labelled"] &= batch.labels is not None
            rows = sorted(chosen & set(range(seen, seen + batch.count)))
            for feed in _feeds(batch, [row - seen for row in rows], inputs):
                answered = {f"original-{j}": a for j, a in enumerate(found.run(feed))}
                kept.append({**{f"input-{n}": a for n, a in feed.items()}, **answered})
            seen += batch.count
            stage.progress.advance(batch.count)

    def reference(stream: BinaryIO) -> None:
        np.savez(stream, **_columns(kept))  # type: ignore[arg-type]

    contents = {"answers.bin": answers, "reference.npz": reference}
    return cache.put("original", key, contents, document)


def _feeds(
    batch: Batch, rows: list[int], inputs: tuple[Tensor, ...]
) -> Iterator[dict[str, np.ndarray]]:
    """Some samples of a batch, each as a feed of its own.

    Where the model's batch is fixed, and where a feed is whole as it is, that is the whole batch.
    """
    if rows and (batch.count == 1 or fixed_batch(inputs) is not None):
        yield dict(batch.inputs)
        return
    for i in rows:
        yield {name: array[i : i + 1] for name, array in batch.inputs.items()}


def _columns(kept: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The reference samples as one array per input and output.

    Where samples are of different sizes, those of the commonest size are taken.
    """
    sizes = [tuple(sorted((name, a.shape) for name, a in row.items())) for row in kept]
    ((commonest, _),) = Counter(sizes).most_common(1)
    rows = [row for row, size in zip(kept, sizes, strict=True) if size == commonest]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _read_reference(
    entry: Entry, inputs: tuple[Tensor, ...]
) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]]]:
    with np.load(entry.folder / "reference.npz", allow_pickle=False) as arrays:
        fed = {tensor.name: arrays[f"input-{tensor.name}"] for tensor in inputs}
        outputs = sorted(
            (name for name in arrays.files if name.startswith("original-")),
            key=lambda name: int(name.rpartition("-")[2]),
        )
        answered = [arrays[name] for name in outputs]
    rows = range(len(answered[0]))
    # An ellipsis, so that what has no axis stays an array.
    return (
        [{name: array[i, ...] for name, array in fed.items()} for i in rows],
        [[array[i, ...] for array in answered] for i in rows],
    )


def answered(samples: SampleSets, reference: Reference) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """The evaluation set, batch by batch, each with the original's answers."""
    with reference.answers.open("rb") as stream:
        for batch, answers in zip(
            samples.evaluation.batches(EVALUATION_BATCH), read_frames(stream), strict=True
        ):
            yield batch, [answers[f"original-{i}"] for i in range(len(answers))]


def evaluation_frames(
    samples: SampleSets, reference: Reference, inputs: tuple[Tensor, ...]
) -> Iterator[bytes]:
    """The evaluation set with the original's answers, as the loader's `verify` reads it."""
    for batch, answers in answered(samples, reference):
        fed = {f"input-{i}": batch.inputs[t.name] for i, t in enumerate(inputs)}
        given = {f"original-{i}": array for i, array in enumerate(answers)}
        labels = {} if batch.labels is None else {"labels": batch.labels}
        yield frame({**fed, **given, **labels, "count": np.array(batch.count)})
