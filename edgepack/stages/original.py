"""Stage `original`: the original model's answers, which everything later is held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgepack.bundle import OtherSize
from edgepack.cache import Cache, Entry
from edgepack.data.samples import Batch, Samples
from edgepack.graph.signature import default_output_names
from edgepack.ledger import Ledger, Stage
from edgepack.request import Request
from edgepack.runtime.commands.verify import frame, read_frames
from edgepack.runtime.parity.sizes import LARGEST_STACK
from edgepack.runtime.session.feeds import fixed_batch
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import output_keys
from edgepack.source.model import Source
from edgepack.stages.answers import AnswerSurvey, refuse_unprovable
from edgepack.stages.identity import identify
from edgepack.stages.labels import Labels, OutputKind, infer_kinds, judge_labels
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
        kinds: what each output is.
        labels: what becomes of the labels of the evaluation samples.
        digest: of everything that decides these answers.
        sizes: the original's answers at one other size of every dynamic axis.
        identity: of the model that gave them, see `identify`.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    original: Sequence[Sequence[np.ndarray]]
    answers: Path
    kinds: tuple[OutputKind, ...]
    labels: Labels
    digest: str
    sizes: Sequence[OtherSize] = ()
    identity: str = ""


def ask_original(
    request: Request, found: Source, inputs: tuple[Tensor, ...], samples: SampleSets,
    cache: Cache, ledger: Ledger,
) -> Reference:  # fmt: skip
    """Run the original model on every evaluation sample, and choose the reference samples."""
    count, samples_digest = evaluation_of(samples)
    with ledger.stage("original", count) as stage:
        found = identify(found, inputs, samples, cache, ledger)
        size = sum(_feed_bytes(tensor) for tensor in inputs)
        fitting = min(REFERENCE_MAX, max(REFERENCE_MIN, REFERENCE_BYTES // max(size, 1)))
        wanted = min(count, request.reference_samples or fitting)
        key = cache.key(
            "original",
            {
                "source": found.key,
                "samples": samples_digest,
                "inputs": [tensor.to_json() for tensor in inputs],
                "wanted": wanted,
            },
        )
        entry = cache.get("original", key)
        if entry is None:
            entry = _run_original(
                request, found, samples.evaluation, inputs, count, wanted, stage, cache, key
            )
        else:
            stage.set(status="cached")
        cache.keep_in_use(entry)
        feeds, original = _read_reference(entry, inputs)
        stage.note(
            f"the original model answered {count:,} samples; {len(feeds)} of them ship as reference"
        )
        kinds, labels = _survey_answers(request, found, entry, ledger)
        if labels.used:
            stage.note("the labels of the evaluation samples judge the outputs")
    sizes = answer_sizes(request, found, inputs, feeds[:LARGEST_STACK], key, cache)
    answers = entry.folder / "answers.bin"
    return Reference(feeds, original, answers, kinds, labels, key, sizes, found.identity)


def _survey_answers(
    request: Request, found: Source, entry: Entry, ledger: Ledger
) -> tuple[tuple[OutputKind, ...], Labels]:
    """Hold the original's answers against what a proof needs, and against their labels."""
    survey = entry.document["survey"]
    names = _output_names(request, found, entry.document["keys"], len(survey["outputs"]))
    trial = request.random and not request.evaluation
    ledger.warn(*refuse_unprovable(survey, names, trial))
    stated = [
        (request.output_kinds.get(name) or found.output_kind, request.output_axes.get(name))
        for name in names
    ]

    def answered() -> Iterator[tuple[list[np.ndarray], np.ndarray, int]]:
        with (entry.folder / "answers.bin").open("rb") as stream:
            for shard in read_frames(stream):
                yield _originals(shard), shard["labels"], int(shard["count"])

    kinds = infer_kinds(survey, names, stated)
    kinds, labels = judge_labels(kinds, names, survey, answered, request.allow_chance)
    if labels.unused:
        ledger.warn(f"the labels of the evaluation samples are unused: {labels.unused}")
    if labels.chance:
        ledger.warn(labels.chance)
    return kinds, labels


def _output_names(
    request: Request, found: Source, keys: Sequence[str], count: int
) -> tuple[str, ...]:
    """Return the names that the export will give the outputs, as far as they are known before."""
    if found.onnx is None and len(request.output_kinds) == count:
        return tuple(request.output_kinds)
    return tuple(keys) if len(keys) == count else default_output_names(count)


def _label_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """What a shard of the evaluation set holds beside inputs and answers."""
    labels = {} if batch.labels is None else {"labels": batch.labels}
    return {**labels, "count": np.array(batch.count)}


def _originals(shard: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    count = sum(name.startswith("original-") for name in shard)
    return [shard[f"original-{i}"] for i in range(count)]


def _feed_bytes(tensor: Tensor) -> int:
    sizes = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _run_original(
    request: Request,
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
    document: dict[str, Any] = {}

    def name_outputs(number: int) -> tuple[str, ...]:
        keys = found.output_names or (output_keys(found.module) if found.module else None)
        document["keys"] = list(keys or ())
        return _output_names(request, found, document["keys"], number)

    def answers(stream: BinaryIO) -> None:
        """Written as they come: all of them need not fit into memory."""
        seen = 0
        survey = AnswerSurvey(name_outputs)
        for batch in samples.batches(EVALUATION_BATCH):
            outputs = found.run(batch.inputs)
            survey.add(outputs, batch.labels, batch.count)
            answers = {f"original-{i}": array for i, array in enumerate(outputs)}
            stream.write(frame({**answers, **_label_arrays(batch)}))
            rows = sorted(chosen & set(range(seen, seen + batch.count)))
            for feed in _feeds(batch, [row - seen for row in rows], inputs):
                answered = {f"original-{j}": a for j, a in enumerate(found.run(feed))}
                kept.append({**{f"input-{n}": a for n, a in feed.items()}, **answered})
            seen += batch.count
            stage.progress.advance(batch.count)
        document["survey"] = survey.to_json()

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
        for batch, shard in zip(
            samples.evaluation.batches(EVALUATION_BATCH), read_frames(stream), strict=True
        ):
            yield batch, _originals(shard)


def evaluation_frames(
    samples: SampleSets, reference: Reference, inputs: tuple[Tensor, ...]
) -> Iterator[bytes]:
    """The evaluation set with the original's answers, as the loader's `verify` reads it."""
    for batch, answers in answered(samples, reference):
        fed = {f"input-{i}": batch.inputs[t.name] for i, t in enumerate(inputs)}
        given = {f"original-{i}": array for i, array in enumerate(answers)}
        yield frame({**fed, **given, **_label_arrays(batch)})
