"""Stage `original`: run the original model; its answers are the reference of the build."""

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
# Reference samples ship in the bundle: as many as fit into these bytes, within bounds.
REFERENCE_BYTES = 4 << 20
REFERENCE_MIN, REFERENCE_MAX = 4, 64


@dataclass(frozen=True)
class Reference:
    """Reference samples of the bundle, and the original's answers to all evaluation samples.

    Attributes:
        feeds: the reference samples, one call each.
        original: per feed, the outputs of the original model.
        answers: the original's answers on the evaluation set, in frames, batch by batch.
        kinds: of the outputs.
        labels: use of the labels of the evaluation samples.
        digest: of everything that determines these answers.
        sizes: the original's answers at one other size of every dynamic axis.
        identity: of the model that computed them, see `identify`.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    original: Sequence[Sequence[np.ndarray]]
    answers: Path
    kinds: tuple[OutputKind, ...]
    labels: Labels
    digest: str
    sizes: Sequence[OtherSize] = ()
    identity: str = ""


def run_original(
    request: Request, source: Source, inputs: tuple[Tensor, ...], samples: SampleSets,
    cache: Cache, ledger: Ledger,
) -> Reference:  # fmt: skip
    """Run the original model on every evaluation sample, and select the reference samples."""
    count, samples_digest = evaluation_of(samples)
    with ledger.stage("original", count) as stage:
        source = identify(source, inputs, samples, cache, ledger)
        size = sum(_feed_bytes(tensor) for tensor in inputs)
        fitting = min(REFERENCE_MAX, max(REFERENCE_MIN, REFERENCE_BYTES // max(size, 1)))
        references = min(count, request.reference_samples or fitting)
        key = cache.key(
            "original",
            {
                "source": source.key,
                "samples": samples_digest,
                "inputs": [tensor.to_json() for tensor in inputs],
                "wanted": references,
            },
        )
        entry = cache.get("original", key)
        if entry is None:
            entry = _run_original(
                request, source, samples.evaluation, inputs, count, references, stage, cache, key
            )
        else:
            stage.set(status="cached")
        cache.keep_in_use(entry)
        feeds, original = _read_reference(entry, inputs)
        stage.note(
            f"the original model answered {count:,} samples; {len(feeds)} of them ship as reference"
        )
        kinds, labels = _survey_answers(request, source, entry, ledger)
        if labels.used:
            stage.note("the labels of the evaluation samples judge the outputs")
    sizes = answer_sizes(request, source, inputs, feeds[:LARGEST_STACK], key, cache)
    answers = entry.folder / "answers.bin"
    return Reference(feeds, original, answers, kinds, labels, key, sizes, source.identity)


def _survey_answers(
    request: Request, source: Source, entry: Entry, ledger: Ledger
) -> tuple[tuple[OutputKind, ...], Labels]:
    """Check that the original's answers allow a proof, and match them with the labels."""
    survey = entry.document["survey"]
    names = _output_names(request, source, entry.document["keys"], len(survey["outputs"]))
    trial = request.random and not request.evaluation
    ledger.warn(*refuse_unprovable(survey, names, trial))
    stated = [
        (request.output_kinds.get(name) or source.output_kind, request.output_axes.get(name))
        for name in names
    ]

    def read_batches() -> Iterator[tuple[list[np.ndarray], np.ndarray, int]]:
        with (entry.folder / "answers.bin").open("rb") as stream:
            for shard in read_frames(stream):
                yield _originals(shard), shard["labels"], int(shard["count"])

    kinds = infer_kinds(survey, names, stated)
    kinds, labels = judge_labels(kinds, names, survey, read_batches, request.allow_chance)
    if labels.unused:
        ledger.warn(f"the labels of the evaluation samples are unused: {labels.unused}")
    if labels.chance:
        ledger.warn(labels.chance)
    return kinds, labels


def _output_names(
    request: Request, source: Source, keys: Sequence[str], count: int
) -> tuple[str, ...]:
    """Return the names of the outputs after the export, as far as they are known before it."""
    if source.onnx is None and len(request.output_kinds) == count:
        return tuple(request.output_kinds)
    if len(keys) == count:
        return tuple(keys)
    return default_output_names(count)


def _label_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Return the arrays of a shard of the evaluation set besides inputs and answers."""
    arrays = {}
    if batch.labels is not None:
        arrays["labels"] = batch.labels
    arrays["count"] = np.array(batch.count)
    return arrays


def _originals(shard: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    count = sum(name.startswith("original-") for name in shard)
    return [shard[f"original-{i}"] for i in range(count)]


def _feed_bytes(tensor: Tensor) -> int:
    sizes = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _run_original(
    request: Request,
    source: Source,
    samples: Samples,
    inputs: tuple[Tensor, ...],
    count: int,
    references: int,
    stage: Stage,
    cache: Cache,
    key: str,
) -> Entry:
    # Spread over the set, since samples are often sorted by class.
    positions = {i * count // references for i in range(references)}
    examples: list[dict[str, np.ndarray]] = []
    document: dict[str, Any] = {}

    def name_outputs(number: int) -> tuple[str, ...]:
        keys = source.output_names
        if not keys and source.module:
            keys = output_keys(source.module)
        document["keys"] = list(keys or ())
        return _output_names(request, source, document["keys"], number)

    def answers(stream: BinaryIO) -> None:
        """Write the answers batch by batch: all of them may not fit into memory."""
        offset = 0
        survey = AnswerSurvey(name_outputs)
        for batch in samples.batches(EVALUATION_BATCH):
            outputs = source.run(batch.inputs)
            survey.add(outputs, batch.labels, batch.count)
            answers = {f"original-{i}": array for i, array in enumerate(outputs)}
            stream.write(frame({**answers, **_label_arrays(batch)}))
            # Of positions {0, 20, 40} and a batch of the samples 16 to 31, row 4 is a reference.
            rows = sorted(positions & set(range(offset, offset + batch.count)))
            for feed in _feeds(batch, [row - offset for row in rows], inputs):
                outputs_by_name = {f"original-{j}": a for j, a in enumerate(source.run(feed))}
                examples.append({**{f"input-{n}": a for n, a in feed.items()}, **outputs_by_name})
            offset += batch.count
            stage.progress.advance(batch.count)
        document["survey"] = survey.to_json()

    def reference(stream: BinaryIO) -> None:
        np.savez(stream, **_columns(examples))  # type: ignore[arg-type]

    contents = {"answers.bin": answers, "reference.npz": reference}
    return cache.put("original", key, contents, document)


def _feeds(
    batch: Batch, rows: list[int], inputs: tuple[Tensor, ...]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield some samples of a batch, each as a separate feed.

    The whole batch is one feed if the model's batch is fixed, or if it holds one sample.
    """
    if rows and (batch.count == 1 or fixed_batch(inputs) is not None):
        yield dict(batch.inputs)
        return
    for i in rows:
        yield {name: array[i : i + 1] for name, array in batch.inputs.items()}


def _columns(references: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the reference samples into one array per input and output.

    Of samples with different sizes, those with the commonest size are used.
    """
    sizes = [tuple(sorted((name, a.shape) for name, a in row.items())) for row in references]
    ((commonest, _),) = Counter(sizes).most_common(1)
    rows = [row for row, size in zip(references, sizes, strict=True) if size == commonest]
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
        originals = [arrays[name] for name in outputs]
    rows = range(len(originals[0]))
    # With the ellipsis, a scalar stays an array.
    return (
        [{name: array[i, ...] for name, array in fed.items()} for i in rows],
        [[array[i, ...] for array in originals] for i in rows],
    )


def iterate_answers(
    samples: SampleSets, reference: Reference
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """Yield the batches of the evaluation set, each with the original's answers."""
    with reference.answers.open("rb") as stream:
        for batch, shard in zip(
            samples.evaluation.batches(EVALUATION_BATCH), read_frames(stream), strict=True
        ):
            yield batch, _originals(shard)


def evaluation_frames(
    samples: SampleSets, reference: Reference, inputs: tuple[Tensor, ...]
) -> Iterator[bytes]:
    """Yield the evaluation set with the original's answers, as frames for the loader's `verify`."""
    for batch, answers in iterate_answers(samples, reference):
        fed = {f"input-{i}": batch.inputs[t.name] for i, t in enumerate(inputs)}
        originals = {f"original-{i}": array for i, array in enumerate(answers)}
        yield frame({**fed, **originals, **_label_arrays(batch)})
