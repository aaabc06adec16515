"""Stage `original`: the original model's answers, which everything later is held against."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.cache import Cache, Entry
from edgepack.data.samples import Batch, Samples
from edgepack.errors import DataError
from edgepack.ledger import Ledger, Stage
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.runtime.verify import frame, read_frames
from edgepack.source.model import Source
from edgepack.stages.samples import SampleSets, evaluation_of

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
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    original: Sequence[Sequence[np.ndarray]]
    answers: Path
    labelled: bool


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
            entry = _run_original(found, samples.evaluation, count, wanted, stage, cache, key)
        else:
            stage.set(status="cached")
        feeds, original = _read_reference(entry, inputs)
        stage.note(
            f"the original model answered {count:,} samples; {len(feeds)} of them ship as reference"
        )
    return Reference(
        feeds, original, entry.folder / "answers.bin", bool(entry.document["labelled"])
    )


def _feed_bytes(tensor: Tensor) -> int:
    sizes = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _run_original(
    found: Source, samples: Samples, count: int, wanted: int, stage: Stage, cache: Cache, key: str
) -> Entry:
    # Spread over the set, since samples are often sorted by class.
    chosen = {i * count // wanted for i in range(wanted)}
    kept: dict[str, list[np.ndarray]] = {}
    answers = io.BytesIO()
    seen, labelled = 0, True
    for batch in samples.batches(EVALUATION_BATCH):
        outputs = found.run(batch.inputs)
        answers.write(frame({f"original-{i}": array for i, array in enumerate(outputs)}))
        labelled = labelled and batch.labels is not None
        for i in sorted(chosen & set(range(seen, seen + batch.count))):
            feed = one_feed(batch, i - seen)
            for name, array in feed.items():
                kept.setdefault(f"input-{name}", []).append(array)
            for j, array in enumerate(found.run(feed)):
                kept.setdefault(f"original-{j}", []).append(array)
        seen += batch.count
        stage.progress.advance(batch.count)
    reference = io.BytesIO()
    columns = {name: _stack(name, arrays) for name, arrays in kept.items()}
    np.savez(reference, **columns)  # type: ignore[arg-type]
    contents = {"answers.bin": answers.getvalue(), "reference.npz": reference.getvalue()}
    return cache.put("original", key, contents, {"labelled": labelled})


def one_feed(batch: Batch, i: int) -> dict[str, np.ndarray]:
    """The i-th sample of a batch as a feed of its own."""
    if batch.count == 1:
        return dict(batch.inputs)
    return {name: array[i : i + 1] for name, array in batch.inputs.items()}


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise DataError(
            "reference-ragged",
            "the reference samples are of different sizes",
            why=f"{name}: {', '.join(map(str, shapes))}",
            hint="give evaluation samples of one size; other sizes run all the same",
        )
    return np.stack(arrays)


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
    return (
        [{name: array[i] for name, array in fed.items()} for i in rows],
        [[array[i] for array in answered] for i in rows],
    )


def evaluation_frames(
    samples: SampleSets, reference: Reference, inputs: tuple[Tensor, ...]
) -> Iterator[bytes]:
    """The evaluation set with the original's answers, as the loader's `verify` reads it."""
    with reference.answers.open("rb") as stream:
        for batch, answers in zip(
            samples.evaluation.batches(EVALUATION_BATCH), read_frames(stream), strict=True
        ):
            fed = {f"input-{i}": batch.inputs[t.name] for i, t in enumerate(inputs)}
            labels = {} if batch.labels is None else {"labels": batch.labels}
            yield frame({**fed, **answers, **labels, "count": np.array(batch.count)})
