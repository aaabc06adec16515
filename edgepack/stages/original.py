"""Stage `original`: run the original model; its answers are the reference of the build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgepack import plugins
from edgepack.cache import Cache, Entry
from edgepack.context import (
    EVALUATION_BATCH,
    Context,
    Labels,
    OutputKind,
    Reference,
    SampleSets,
)
from edgepack.context.answers import encode_answers, read_answers
from edgepack.context.gates import RELATIVE, check_direction, describe_missed
from edgepack.context.graph import describe_tensors
from edgepack.context.reference import OriginalScore
from edgepack.context.scoring import require_ratio, score_original
from edgepack.data.raw.compact import compact_sample
from edgepack.data.raw.prepare import prepare
from edgepack.data.samples import Batch, Samples
from edgepack.data.stream import class_names_of, preprocessing_of
from edgepack.errors import DataError
from edgepack.graph.signature import default_output_names
from edgepack.ledger import Stage
from edgepack.metrics.catalogue import load_metrics
from edgepack.metrics.classes import judges_decisions
from edgepack.metrics.postprocess import Postprocess, load_postprocess
from edgepack.request import Request
from edgepack.runtime.parity.accuracy import TOP
from edgepack.runtime.parity.sizes import LARGEST_STACK
from edgepack.runtime.preprocess.code import Code
from edgepack.runtime.preprocess.feed import join_feeds
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.session.feeds import fixed_batch
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import output_keys
from edgepack.source.model import Source
from edgepack.stages.answers import AnswerSurvey, refuse_unprovable
from edgepack.stages.classes import check_class_count, check_class_order
from edgepack.stages.identity import identify
from edgepack.stages.labels import infer_kinds, judge_labels
from edgepack.stages.sizes import answer_sizes

# File of the original's answers in the cache.
ANSWERS = "answers.bin"
# Reference samples ship in the bundle: as many as fit into these bytes, within bounds.
REFERENCE_BYTES = 4 << 20
REFERENCE_MIN, REFERENCE_MAX = 4, 64
# Of raw data, such as pictures, fewer and smaller ones serve: they are compared bit by bit.
RAW_REFERENCES, RAW_BYTES = 8, 12_288
# Bytes of raw samples and answers that ship, as far as RAW_MIN samples allow.
RAW_TOTAL, RAW_MIN = 180_000, 4
# Arrays of the cache with raw data one after another, and their lengths.
RAW, RAW_SIZES = "raw", "raw-sizes"


def run_original(
    context: Context, source: Source, inputs: tuple[Tensor, ...], samples: SampleSets
) -> tuple[Source, Reference]:
    """Run the original model on every evaluation sample, and select the reference samples.

    Returns the source with its identity, and the reference samples with its answers.
    """
    request, cache, count = context.request, context.cache, samples.evaluation_count
    with context.ledger.stage("original", count) as stage:
        source = identify(context, source, inputs, samples)
        # Samples of 600 kB fit 6 times into 4 MB; of 10 MB, the minimum of 4 ships.
        size = sum(map(_count_bytes, inputs))
        fitting = min(REFERENCE_MAX, max(REFERENCE_MIN, REFERENCE_BYTES // max(size, 1)))
        preprocessing = preprocessing_of(samples.evaluation)
        if preprocessing is not None:
            fitting = RAW_REFERENCES
        references = min(count, request.reference_samples or fitting)
        key = cache.key(
            "original",
            {
                "source": source.key,
                "samples": samples.evaluation_digest,
                "inputs": describe_tensors(inputs),
                "wanted": references,
                "preprocessing": preprocessing and preprocessing.to_json(),
                "raw": [RAW_BYTES, RAW_TOTAL, RAW_MIN],
            },
        )
        entry = cache.get("original", key)
        if entry is None:
            # Spread over the set, since samples are often sorted by class.
            positions = {i * count // references for i in range(references)}
            recorder = _Recorder(request, source, inputs, positions, stage, preprocessing)
            entry = recorder.run(samples.evaluation, cache, key)
        else:
            stage.set(status="cached")
        cache.keep_in_use(entry)
        feeds, original, raw = _read_reference(entry, inputs)
        stage.note(
            f"the original model answered {count:,} samples; {len(feeds)} of them ship as reference"
        )
        kinds, labels, scores, postprocess = _survey_answers(
            context, source, entry, class_names_of(samples.evaluation)
        )
        for score in scores:
            stage.note(f"the original's {score.task.name} is {score.value:.6g}")
            stage.note(*plugins.credit(score.task.plugin))
        if not scores and labels.used and not labels.chance:
            stage.note("the labels of the evaluation samples judge the outputs")
    sizes = answer_sizes(context, source, inputs, feeds[:LARGEST_STACK], key)
    reference = Reference(
        feeds=feeds,
        original=original,
        answers=entry.folder / ANSWERS,
        kinds=kinds,
        labels=labels,
        digest=key,
        sizes=sizes,
        scores=scores,
        postprocess=postprocess,
        raw=raw,
        preprocessing=preprocessing if raw else None,
    )
    return source, reference


def _survey_answers(
    context: Context, source: Source, entry: Entry, class_names: Sequence[str]
) -> tuple[tuple[OutputKind, ...], Labels, tuple[OriginalScore, ...], Postprocess | None]:
    """Check that the original's answers allow a proof, and judge them by the labels.

    Raises SourceError, DataError and MetricError.
    """
    request, ledger, survey = context.request, context.ledger, entry.document["survey"]
    names = _choose_output_names(request, source, entry.document["keys"], len(survey["outputs"]))
    trial = request.generates_inputs or (request.random and not request.evaluation)
    # Before the labels are matched, which constant answers would fail for a misleading reason.
    ledger.warn(*refuse_unprovable(survey, names, trial))
    specs = []
    for name in names:
        kind = request.output_kinds.get(name) or source.output_kind
        specs.append((kind, request.output_axes.get(name)))
    kinds = infer_kinds(survey, names, specs)
    # What a postprocess decodes has a form of its own.
    if not request.postprocess:
        check_class_count(survey, names, kinds, class_names)
        if not request.allow_chance:
            answers = partial(read_answers, entry.folder / ANSWERS)
            check_class_order(names, kinds, class_names, answers)
    folders = (Path(), request.base)
    postprocess = None
    if request.postprocess and request.metrics:
        postprocess = load_postprocess(request.postprocess, folders, names)
    tasks = load_metrics(
        request.metrics,
        folders,
        _describe_outputs(names, kinds),
        labelled=survey["labels"] is not None,
        decoded=postprocess is not None,
        class_names=class_names,
    )
    for task in tasks:
        check_direction(request.metric_gates.get(task.name, {}), task)
    scores = score_original(tasks, postprocess, entry.folder / ANSWERS)
    batches = partial(read_answers, entry.folder / ANSWERS)
    counted = request.metric in ("", *TOP)
    labels = Labels(used=True)
    # Metrics of decisions are at chance together: the test counts the right samples.
    if counted or any(judges_decisions(task) for task in tasks):
        judged, labels = judge_labels(kinds, names, survey, batches, request.allow_chance)
        # Another metric that fits an output needs no output that decides.
        if counted:
            kinds = judged
        else:
            labels = replace(labels, used=True, unused="")
    if labels.unused:
        ledger.warn(f"the labels of the evaluation samples are unused: {labels.unused}")
    for score in scores:
        bounds = request.metric_gates.get(score.task.name, {})
        missed = describe_missed(bounds, score.task, score.value)
        ledger.warn(*filter(None, [missed, score.doubt]))
    labels = _judge_scores(scores, labels, request)
    if labels.chance:
        ledger.warn(labels.chance)
    return kinds, labels, scores, postprocess


def _judge_scores(scores: Sequence[OriginalScore], labels: Labels, request: Request) -> Labels:
    """Return the labels, with a warning if the primary metric is no better than guessing.

    Raises DataError `original-chance` for any metric unless the request allows it, and MetricError
    `metric-ratio`.
    """
    for score in scores:
        if score.chance and not request.allow_chance:
            raise DataError(
                "original-chance",
                f"the original's {score.task.name} is no better than guessing",
                why=score.chance,
                hint="check that the labels belong to this model and these samples, and that the "
                "postprocess fits the outputs\n"
                "--allow-chance judges by the other gates instead",
            )
    primary = scores[0] if scores and request.metric not in ("", *TOP) else None
    if primary is not None and primary.chance:
        text = f"the original's {primary.task.name} is no better than guessing: {primary.chance}"
        labels = replace(labels, chance=f"{text}; its labels prove nothing")
    for score in scores:
        named = request.metric_gates.get(score.task.name, {})
        bounds = {gate for bound, gate in RELATIVE.items() if bound in named}
        if score is primary:
            bounds |= set(request.explicit_gates if labels.chance else request.quality)
        require_ratio(score, bounds)
    return labels


def _describe_outputs(names: Sequence[str], kinds: Sequence[OutputKind]) -> tuple[Tensor, ...]:
    """Return the outputs as far as they are known before the export: names and kinds."""
    tensors = []
    for name, output in zip(names, kinds, strict=True):
        tensors.append(Tensor(name, "", (), output.kind, output.axis))
    return tuple(tensors)


def _choose_output_names(
    request: Request, source: Source, keys: Sequence[str], count: int
) -> tuple[str, ...]:
    """Return the names of the outputs after the export, as far as they are known before it."""
    # The names of an ONNX file's outputs are fixed; those of a module are the user's to choose.
    if source.onnx is None and len(request.output_kinds) == count:
        return tuple(request.output_kinds)
    if len(keys) == count:
        return tuple(keys)
    return default_output_names(count)


def _count_bytes(tensor: Tensor) -> int:
    size = np.dtype(tensor.dtype).itemsize
    for dim in tensor.shape:
        # A dynamic axis counts as 1: its size is not known here.
        if isinstance(dim, int):
            size *= dim
    return size


@dataclass(frozen=True, eq=False)
class _Example:
    """Reference sample: its arrays by name, inputs and outputs, and its raw data."""

    arrays: Mapping[str, np.ndarray]
    raw: Sequence[bytes]


class _Recorder:
    """Run of the original over the evaluation set, which records its answers batch by batch.

    Args:
        request: names the outputs.
        source: the original model.
        inputs: of the model.
        positions: of the reference samples in the evaluation set.
        stage: receives the progress.
        preprocessing: conversion of raw samples to feeds; None for samples that are arrays.
    """

    def __init__(
        self,
        request: Request,
        source: Source,
        inputs: tuple[Tensor, ...],
        positions: set[int],
        stage: Stage,
        preprocessing: Preprocessing | None,
    ) -> None:
        self._request, self._source, self._inputs = request, source, inputs
        self._positions, self._stage = positions, stage
        self._preprocessing = preprocessing
        self._examples: list[_Example] = []
        self._document: dict[str, object] = {}

    def run(self, samples: Samples, cache: Cache, key: str) -> Entry:
        """Run the original, and store its answers and the reference samples in the cache."""
        contents: dict[str, Callable[[BinaryIO], None]] = {
            ANSWERS: partial(self._write_answers, samples),
            "reference.npz": self._write_reference,
        }
        return cache.put("original", key, contents, self._document)

    def _write_answers(self, samples: Samples, stream: BinaryIO) -> None:
        offset = 0
        survey = AnswerSurvey(self._name_outputs)
        for batch in samples.batches(EVALUATION_BATCH):
            outputs = self._source.run(batch.inputs)
            survey.add(outputs, batch.labels, batch.count)
            stream.write(encode_answers(batch, outputs))
            # Of positions {0, 20, 40} and a batch of the samples 16 to 31, row 4 is a reference.
            rows = [row for row in range(batch.count) if offset + row in self._positions]
            for feed, raw in _split_feeds(batch, rows, self._inputs):
                self._add_example(feed, raw)
            offset += batch.count
            self._stage.progress.advance(batch.count)
        self._document["survey"] = survey.to_json()

    def _name_outputs(self, number: int) -> tuple[str, ...]:
        keys = self._source.output_names
        network = self._source.network
        if not keys and network is not None:
            keys = output_keys(network)
        self._document["keys"] = list(keys or ())
        return _choose_output_names(self._request, self._source, keys or (), number)

    def _add_example(self, feed: Mapping[str, np.ndarray], raw: Sequence[bytes]) -> None:
        if self._preprocessing is not None and raw:
            raw, feed = _compact(self._preprocessing, raw)
        # A reference sample is one call on the device, so the original answers it in one call, too.
        arrays = {f"input-{name}": array for name, array in feed.items()}
        for index, array in enumerate(self._source.run(feed)):
            arrays[f"original-{index}"] = array
        self._examples.append(_Example(arrays, raw))

    def _write_reference(self, stream: BinaryIO) -> None:
        stored = self._preprocessing is None or isinstance(self._preprocessing, Code)
        examples = self._examples
        if self._request.reference_samples is None:
            examples = _fit_budget(examples)
        np.savez(stream, **_stack_references(examples, stored))  # type: ignore[arg-type]


def _compact(
    preprocessing: Preprocessing, raw: Sequence[bytes]
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Return the samples of one feed in a small form, and the feed that they give."""
    small = [compact_sample(preprocessing, data, RAW_BYTES // len(raw)) for data in raw]
    feeds = []
    for data in small:
        feeds.append(prepare(preprocessing, data, "a reference sample"))
    return small, join_feeds(feeds)


def _split_feeds(
    batch: Batch, rows: list[int], inputs: tuple[Tensor, ...]
) -> Iterator[tuple[dict[str, np.ndarray], Sequence[bytes]]]:
    """Yield some samples of a batch, each as a separate feed with its raw data.

    The whole batch is one feed if the model's batch is fixed, or if it holds one sample.
    """
    raw = batch.raw or ()
    if rows and (batch.count == 1 or fixed_batch(inputs) is not None):
        yield dict(batch.inputs), raw
        return
    for i in rows:
        yield {name: array[i : i + 1] for name, array in batch.inputs.items()}, raw[i : i + 1]


def _fit_budget(examples: list[_Example]) -> list[_Example]:
    """Return as many raw samples as fit into RAW_TOTAL bytes with their answers, spread evenly."""
    if not any(example.raw for example in examples):
        return examples
    sizes = []
    for example in examples:
        size = sum(map(len, example.raw))
        for name, array in example.arrays.items():
            # The original's answer and the bundle's, and both at another size of the batch.
            if name.startswith("original-"):
                size += 4 * array.nbytes
        sizes.append(size)
    # Samples of 12 kB with 1000 scores are 28 kB each: 6 of 8 fit into 180 kB.
    count = max(RAW_MIN, int(RAW_TOTAL * len(sizes) / sum(sizes)))
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _stack_references(references: list[_Example], stored: bool) -> dict[str, np.ndarray]:
    """Stack the reference samples into one array per output, with their inputs and raw data.

    Answers of one shape can be stacked. Of samples with different sizes, those with the commonest
    size of answers are used; of inputs too where these are stored as arrays.

    Args:
        references: the samples.
        stored: True if the bundle stores the arrays of the inputs.
    """
    # Arrays of 20, 24 and 24 tokens: the latter two ship. Texts of these lengths: all three, since
    # each is a file of its own, and first those of 24 tokens, which can share a batch.
    rows = _select_commonest(references, "" if stored else "original-")
    commonest = _select_commonest(rows, "")
    rows = commonest + [row for row in rows if row not in commonest]
    columns = {}
    for name in rows[0].arrays:
        if name.startswith("original-"):
            columns[name] = np.stack([row.arrays[name] for row in rows])
            continue
        for number, row in enumerate(rows):
            columns[f"{number}-{name}"] = row.arrays[name]
    # Raw samples differ in length: two of 3 and 5 bytes are 8 bytes and the lengths [[3], [5]].
    columns[RAW_SIZES] = np.array([[len(data) for data in row.raw] for row in rows], np.int64)
    whole = b"".join(b"".join(row.raw) for row in rows)
    columns[RAW] = np.frombuffer(whole, np.uint8)
    return columns


def _select_commonest(references: list[_Example], prefix: str) -> list[_Example]:
    """Return the samples whose arrays with this prefix have the commonest shapes."""
    by_size: dict[tuple[tuple[str, tuple[int, ...]], ...], list[_Example]] = {}
    for example in references:
        shapes = []
        for name, array in sorted(example.arrays.items()):
            if name.startswith(prefix):
                shapes.append((name, array.shape))
        by_size.setdefault(tuple(shapes), []).append(example)
    # Of two sizes with as many samples, the first counts.
    return max(by_size.values(), key=len)


def _read_raw(arrays: Mapping[str, np.ndarray]) -> list[list[bytes]]:
    """Return the raw data of each reference sample; no samples for arrays."""
    sizes = arrays[RAW_SIZES]
    whole, start, samples = arrays[RAW].tobytes(), 0, []
    for row in sizes.tolist() if sizes.size else ():
        sample = []
        for size in row:
            sample.append(whole[start : start + size])
            start += size
        samples.append(sample)
    return samples


def _read_reference(
    entry: Entry, inputs: tuple[Tensor, ...]
) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]], list[list[bytes]]]:
    with np.load(entry.folder / "reference.npz", allow_pickle=False) as arrays:
        outputs: list[np.ndarray] = []
        while f"original-{len(outputs)}" in arrays:
            outputs.append(arrays[f"original-{len(outputs)}"])
        raw = _read_raw(arrays)
        feeds: list[dict[str, np.ndarray]] = []
        originals: list[list[np.ndarray]] = []
        for row in range(len(outputs[0])):
            feeds.append({t.name: arrays[f"{row}-input-{t.name}"] for t in inputs})
            # With the ellipsis, a scalar stays an array.
            originals.append([array[row, ...] for array in outputs])
    return feeds, originals, raw
