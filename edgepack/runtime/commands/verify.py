"""`verify`: compare this device's answers with the build host's and the original model's."""

from __future__ import annotations

import io
import os
import struct
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import (
    TYPE_CHECKING,
    BinaryIO,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    cast,
)

import numpy as np

from ..bundle.archive import Archive
from ..bundle.arrays import read_arrays, unreadable_reference
from ..bundle.checksum import require_checksum
from ..bundle.engines import CUDA
from ..bundle.index import Index, OtherSize, check_all, read_index
from ..device import machine
from ..device.device_info import onnxruntime_version
from ..errors import BundleError, EdgepackError, GateError, InputError
from ..model import Model, open_model
from ..origin import is_own
from ..parity.accuracy import TOP
from ..parity.gates import judge, judge_reference, judge_size
from ..parity.metrics import Quality, compare
from ..parity.sizes import LARGEST_GROWTH, LARGEST_GROWTH_BY, LARGEST_STACK, feed_at_size
from ..parity.verdict import decide, list_doubts

if TYPE_CHECKING:
    from ..documents import (
        Answers,
        DeviceDocument,
        DeviceFacts,
        Gate,
        Measurement,
        OutputMetrics,
        Outputs,
        Question,
        Verdict,
    )

FORMAT = "edgepack-verdict/1"
# Packages that a device must not need; the verdict lists those that were absent, which proves that
# the loader ran without them.
HOST_ONLY = ("torch", "edgepack")

_LENGTH = struct.Struct("<Q")


def refuses_code(index: Index, bundle: str) -> bool:
    """Return True if the user's code prepares the inputs, and this loader does not run it.

    Only the loader inside a bundle, which is imported from that file, runs the bundle's code.

    Args:
        index: of the bundle.
        bundle: its path.
    """
    if index.preprocessing is None or index.preprocessing.value.get("kind") != "code":
        return False
    return not is_own(bundle)


def reference_feeds(
    archive: Archive, index: Index, most: int = 0
) -> Iterator[Dict[str, np.ndarray]]:
    """Yield the reference inputs, call by call, made of raw samples where the bundle has them.

    Each row of stored arrays is one whole feed. They replace raw samples where `refuses_code`.

    Args:
        archive: the open bundle.
        index: its index.
        most: the maximum number of samples; 0 for all.
    """
    if index.reference.raw is not None and not refuses_code(index, archive.path):
        from ..preprocess.reference import raw_feeds

        yield from raw_feeds(archive, index, most)
        return
    arrays = read_arrays(archive, index, index.reference.inputs, index.reference.samples)
    for i in range(min(most or index.reference.samples, index.reference.samples)):
        # For a model whose input is a scalar, `array[i]` would be a number; `array[i, ...]` stays
        # an array of no axis.
        feed = {}
        for tensor, array in zip(index.inputs, arrays):
            # Whole numbers are stored in the smallest type that holds them.
            feed[tensor.name] = array[i, ...].astype(tensor.dtype, copy=False)
        yield feed


def run_calls(model: Model, calls: Iterable[Mapping[str, np.ndarray]]) -> List[List[np.ndarray]]:
    """Run every call; return its outputs in the index's order."""
    answers = []
    for feed in calls:
        outputs = model.run(feed)
        answers.append([outputs[tensor.name] for tensor in model.outputs])
    return answers


def _question(on: str, metrics: Measurement, gates: List[Gate]) -> Question:
    """Return the entry of fidelity or quality: samples, metrics, gates and the verdict on them."""
    return {
        "on": on,
        "samples": metrics["samples"],
        "outputs": metrics["outputs"],
        "metric": metrics["metric"],
        "gates": gates,
        # Without a gate nothing was checked, so nothing passed.
        "passed": bool(gates) and all(gate["passed"] for gate in gates),
    }


def _measure(
    index: Index, expected: Sequence[np.ndarray], answers: Sequence[Sequence[np.ndarray]]
) -> Measurement:
    """Compare the answers of each call with one row of the expected arrays."""
    pairs = list(zip(_rows(expected, len(answers)), answers))
    outputs = compare(index.outputs, index.parts, pairs, index.inputs)
    return {"samples": len(answers), "outputs": outputs, "metric": None}


def decode_shards(stream: BinaryIO) -> Iterator[Dict[str, np.ndarray]]:
    """Yield the shards of an evaluation set that `encode_shard` wrote, one in memory at a time.

    A shard is its length, as 8 bytes with the lowest first, and then an .npz of that length.
    """
    while True:
        header = stream.read(_LENGTH.size)
        if not header:
            return
        # A truncated header counts as an empty shard, which is an error too.
        length = 0
        if len(header) == _LENGTH.size:
            (length,) = _LENGTH.unpack(header)
        data = stream.read(length)
        if not data or len(data) != length:
            raise InputError(
                "evaluation-cut",
                "the evaluation samples are truncated",
                why=f"a shard has {len(data)} of {length} bytes",
                hint="this stream comes from `edgepack build`; see its error",
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as shard:
            yield {name: shard[name] for name in shard.files}


def encode_shard(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encode one shard of an evaluation set: an .npz after its length."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return _LENGTH.pack(buffer.tell()) + buffer.getvalue()


def _on_evaluation(
    model: Model, stream: BinaryIO, sizes: Sequence[_AtSize], written: Optional[BinaryIO]
) -> Question:
    """Measure the quality on a stream of shards, one call each, and at other sizes.

    A shard holds input-N and original-N, `count` and, if the set has them, `labels`. The answers
    are written as shards of answer-N and `count`.
    """
    index = model.index
    metric = index.raw.get("metric")
    # The build host computes any other metric from the written answers.
    quality = Quality(index.outputs, index.parts, metric if metric in TOP else "", index.inputs)
    for shard in decode_shards(stream):
        feed = {tensor.name: shard[f"input-{i}"] for i, tensor in enumerate(index.inputs)}
        outputs = model.run(feed)
        originals, measured = [], []
        answers = {"count": shard["count"]}
        for i, tensor in enumerate(index.outputs):
            originals.append(shard[f"original-{i}"])
            measured.append(outputs[tensor.name])
            answers[f"answer-{i}"] = outputs[tensor.name]
        quality.update(originals, measured, shard.get("labels"), int(shard["count"]))
        if written is not None:
            written.write(encode_shard(answers))
    if not quality.samples:
        raise InputError(
            "evaluation-cut",
            "there are no evaluation samples",
            why="the stream is empty",
            hint="this stream comes from `edgepack build`; see its error",
        )
    metrics = quality.result()
    gates = judge(index.gates["quality"], metrics["outputs"], metrics["metric"])
    gates += _judge_sizes(index, sizes, metrics["outputs"])
    return _question("evaluation", metrics, gates)


@dataclass(frozen=True)
class _AtSize:
    """Answers to one sample with a dynamic axis at another size.

    Attributes:
        label: axis and size in words.
        original: per output, the original's answer.
        built: per output, the build host's answer; empty in a draft.
        answers: per output, this device's answer.
    """

    label: str
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray]
    answers: Sequence[np.ndarray]

    def compare(self, index: Index, expected: Sequence[np.ndarray]) -> Dict[str, OutputMetrics]:
        """Compare this device's answers with others; return metrics by output and size."""
        outputs = compare(index.outputs, index.parts, [(expected, self.answers)], index.inputs)
        return {f"{name} at {self.label}": metrics for name, metrics in outputs.items()}


def _at_sizes(
    archive: Archive, model: Model, feeds: Sequence[Mapping[str, np.ndarray]]
) -> List[_AtSize]:
    """Run the first reference samples at one other size of every dynamic axis.

    A graph may be right for a single sample and wrong from the second row of a batch on: a
    Reshape with a batch of 1 written into its shape, for example.
    """
    index = model.index
    results = []
    for size in index.sizes:
        _check_size(index, size, feeds[0])
        feed = feed_at_size(index.inputs, feeds, size.axis, size.size)
        (answers,) = run_calls(model, [feed])
        # Axis 0 of the stored arrays counts samples, of which there is one.
        original = [array[0] for array in read_arrays(archive, index, size.original, 1)]
        built = [array[0] for array in read_arrays(archive, index, size.built, 1)]
        results.append(_AtSize(size.label, original, built, answers))
    return results


def _check_size(index: Index, size: OtherSize, feed: Mapping[str, np.ndarray]) -> None:
    """Refuse an absurd size before memory is allocated for it.

    For samples of 100 tokens a build writes at most 2 * 100 + 32 = 232.
    """
    usual = 0
    for tensor in index.inputs:
        if size.axis in tensor.shape:
            usual = max(usual, feed[tensor.name].shape[tensor.shape.index(size.axis)])
    if size.size > LARGEST_GROWTH * usual + LARGEST_GROWTH_BY:
        raise unreadable_reference(f"{size.label} is too far from the samples' size of {usual}")


def _judge_sizes(index: Index, sizes: Sequence[_AtSize], evaluated: Outputs) -> List[Gate]:
    gates: List[Gate] = []
    for size in sizes:
        outputs = size.compare(index, size.original)
        for tensor in index.outputs:
            name = f"{tensor.name} at {size.label}"
            gates += judge_size(
                index.gates["quality"], name, outputs[name], evaluated[tensor.name],
                index.parts[tensor.name],
            )  # fmt: skip
    return gates


def _on_reference(
    index: Index,
    original: Sequence[np.ndarray],
    built: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    sizes: Sequence[_AtSize],
    fidelity: Mapping[str, float],
) -> Question:
    """Judge the quality on the reference samples by the errors that the build measured.

    Raises BundleError if the bundle's stored answers differ from the build's measurements.
    """
    metrics = _measure(index, original, answers)
    # A draft, whose build has not measured anything yet.
    if not index.quality:
        gates = judge(index.gates["quality"], metrics["outputs"])
        gates += _judge_sizes(index, sizes, metrics["outputs"])
        return _question("reference", metrics, [*gates, _build_gate(index)])
    host = _check_recorded(index, original, built)
    if len(answers) < index.reference.samples:
        host = _measure(index, original, _rows(built, len(answers)))["outputs"]
    gates = judge_reference(
        index.quality["outputs"],
        host,
        metrics["outputs"],
        index.parts,
        fidelity,
    )
    gates += _judge_sizes(index, sizes, index.quality["outputs"])
    if index.quality["passed"] is not True:
        gates.append(_build_gate(index))
    return _question("reference", metrics, gates)


def _build_gate(index: Index) -> Gate:
    """Return the gate that a draft and a bundle refused by its build miss."""
    return {
        "name": "built",
        "output": index.name,
        "bound": True,
        "measured": False,
        "passed": False,
        "note": "",
    }


def _check_recorded(
    index: Index, original: Sequence[np.ndarray], built: Sequence[np.ndarray]
) -> Dict[str, OutputMetrics]:
    """Refuse stored answers, original or built, that do not reproduce the build's figures.

    Returns the metrics of the stored answers, by output.
    """
    rows = _rows(built, index.reference.samples)
    measured = _measure(index, original, rows)["outputs"]
    for tensor in index.outputs:
        recorded = index.quality["reference"][tensor.name]
        # Integers have no parts, so only their agreement is compared.
        share = measured[tensor.name]["top1_agreement"]
        figures = [("top1_agreement", share, recorded.get("top1_agreement"))]
        for part, record in zip(measured[tensor.name]["parts"], recorded["parts"]):
            figures.append(("worst_error", part["worst_error"], record.get("worst_error")))
            figures.append(("max_abs", part["max_abs"], record.get("max_abs")))
        for key, figure, recorded_figure in figures:
            if not _close(figure, recorded_figure):
                raise BundleError(
                    "bundle-answers",
                    "the bundle's answers are not those that its build measured",
                    why=f"{tensor.name}: {key} is {figure}, the build recorded {recorded_figure}",
                    hint="do not use it; fetch it again from where it was built",
                )
    return measured


def _rows(arrays: Sequence[np.ndarray], count: int) -> List[List[np.ndarray]]:
    """Split stored arrays into the first `count` rows, one call each."""
    # Boxes of shape (5, 1, 4) and scores (5, 1) give 5 rows of a (1, 4) and a (1,).
    rows = []
    for i in range(count):
        rows.append([array[i] for array in arrays])
    return rows


def _close(a: Optional[float], b: Optional[float]) -> bool:
    if a is None or b is None:
        return a is None and b is None
    # Sums of squares depend on the order of their terms, and so on numpy's version.
    return bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))


def on_samples(
    archive: Archive,
    model: Model,
    evaluation: Optional[BinaryIO] = None,
    most: int = 0,
    written: Optional[BinaryIO] = None,
) -> Answers:
    """Measure preprocessing, fidelity and quality of a running model.

    Args:
        archive: the open bundle.
        model: its model.
        evaluation: the stream of evaluation samples, see `verify`.
        most: the maximum number of reference samples; 0 for all.
        written: receives the answers to the evaluation samples; None for none.

    Returns "preprocessing", "quality", "fidelity", "passed" and the seconds that the reference
    samples took.
    """
    index = model.index
    started = time.perf_counter()
    feeds = list(reference_feeds(archive, index, most))
    preprocessing, same = None, [True] * len(feeds)
    bounds = bound_fidelity(model)
    if index.reference.raw is not None and not refuses_code(index, archive.path):
        from ..preprocess.reference import judge_feeds, relax

        preprocessing, same = judge_feeds(archive, index, feeds)
        if not all(same):
            bounds = relax(bounds)
    answers = _run_judged(model, feeds, preprocessing)
    seconds = time.perf_counter() - started
    reference = index.reference
    original = read_arrays(archive, index, reference.original, reference.samples)
    built = read_arrays(archive, index, reference.built, reference.samples)
    # A limit means an emulated device, with time for only a few calls: skip the other sizes.
    sizes: List[_AtSize] = []
    if not most:
        sizes = _at_sizes(archive, model, feeds[:LARGEST_STACK])
    fidelity = None
    if built:
        metrics = _measure(index, built, answers)
        gates = _judge_fidelity(model, built, answers, same)
        for size in sizes:
            gates += judge(bounds, size.compare(index, size.built))
        fidelity = _question("reference", metrics, gates)
    if evaluation is not None:
        quality = _on_evaluation(model, evaluation, sizes, written)
        # The build records these figures in the index; `_check_recorded` compares them later.
        # A draft has no built answers, so there is nothing to record.
        rows = _rows(built, index.reference.samples) if built else []
        quality["reference"] = _measure(index, original, rows)["outputs"]
    else:
        quality = _on_reference(index, original, built, answers, sizes, bounds)
    questions = [question for question in (preprocessing, quality, fidelity) if question]
    return {
        "preprocessing": preprocessing,
        "quality": quality,
        "fidelity": fidelity,
        "passed": all(question["passed"] for question in questions),
        "seconds": seconds,
    }


def bound_fidelity(model: Model) -> Mapping[str, float]:
    """Return the gates of fidelity of the variant that runs: its own, or the bundle's."""
    return model.choice.require_variant().fidelity or model.index.gates["fidelity"]


def _run_judged(
    model: Model, feeds: Sequence[Mapping[str, np.ndarray]], preprocessing: Optional[Question]
) -> List[List[np.ndarray]]:
    """Run every call; blame the preprocessing if its inputs are wrong and the model refuses them.

    Raises GateError `preprocessing-differs`: a tokenizer of another model, for example, gives
    numbers beyond the vocabulary, which the engine cannot look up.
    """
    try:
        return run_calls(model, iter(feeds))
    except EdgepackError as error:
        if preprocessing is None or preprocessing["passed"]:
            raise
        missed = [gate["output"] for gate in preprocessing["gates"] if not gate["passed"]]
        raise GateError(
            "preprocessing-differs",
            "the preprocessing makes other inputs here than on the build host",
            why=f"{', '.join(missed)}; the model cannot run on them: {error.what}",
            hint="install the packages of the bundle's requirements.txt, or build it again",
        ) from error


def _judge_fidelity(
    model: Model,
    built: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    same: Sequence[bool],
) -> List[Gate]:
    """Judge this device's answers: exactly, where it has the build host's inputs bit by bit.

    Args:
        model: of the bundle.
        built: per output, the answers of the build host.
        answers: of this device, sample by sample.
        same: per sample, True if this device has the build host's inputs.
    """
    index, gates = model.index, []
    for exact in (True, False):
        rows = [i for i, equal in enumerate(same) if equal == exact]
        if not rows:
            continue
        bounds = bound_fidelity(model)
        if not exact:
            from ..preprocess.reference import relax

            # Inputs that differ in a bit have answers that differ.
            bounds = relax(bounds)
        metrics = _measure(index, [array[rows] for array in built], [answers[i] for i in rows])
        gates += judge(bounds, metrics["outputs"])
    return gates


def verify(
    path: str,
    *,
    evaluation: Optional[BinaryIO] = None,
    answers: str = "",
    threads: int = 0,
    stand_in: bool = False,
    variant: str = "",
    samples: int = 0,
) -> Verdict:
    """Verify a bundle on this device.

    Every byte is hashed and the reference inputs run through the loader. Inputs that this device
    makes of raw samples are compared with the build host's (preprocessing), the answers with the
    original model's (quality) and with the build host's (fidelity).

    Args:
        path: the bundle.
        evaluation: a stream of samples with the original's answers (`encode_shard`), on which
            quality is measured instead of the reference samples; only the build sends it.
        answers: a file for the answers to these samples; "" for none.
        threads: threads within an operator; 0 takes every physical core.
        stand_in: this is the build host and stands in for the device.
        variant: the name of the variant to verify; "" for the best that fits.
        samples: the maximum number of reference samples; 0 for all.

    Returns the verdict ("edgepack-verdict/1") as JSON values. Raises
    BundleError, DeviceError or InputError if it could not run.
    """
    with Archive(path) as archive:
        index = read_index(archive)
        hashed, digest = check_all(archive, index), require_checksum(archive)
        started = time.perf_counter()
        model = open_model(archive, index, threads, stand_in=stand_in, variant=variant)
        load_seconds = time.perf_counter() - started
        with open(answers or os.devnull, "wb") as written:
            proof = on_samples(archive, model, evaluation, samples, written if answers else None)
    # A variant that the user names is the one to judge, even if it is only a fallback.
    fallback = ""
    if model.choice.fallback and not variant:
        fallback = model.choice.require_variant().name
    doubts, placement = list_doubts(index, stand_in, fallback), None
    on_cuda = model.choice.require_variant().engine == CUDA
    if on_cuda:
        from ..session.placement import measure_placement

        placement = measure_placement(model.session, index, doubts)
    verdict, reasons = decide(
        [proof["preprocessing"], proof["quality"], proof["fidelity"]], doubts, placement
    )
    document: Verdict = {
        "format": FORMAT,
        "verdict": verdict,
        "reasons": reasons,
        "passed": proof["passed"] and (placement is None or placement["passed"]),
        "bundle": {
            "name": index.name,
            "target": index.target,
            "content_digest": index.content_digest,
            "sha256": digest,
            "bytes": os.path.getsize(path),
            "model_bytes": index.files[index.model][1],
        },
        "variant": model.choice.to_json(),
        "integrity": {"files": len(index.files), "bytes": hashed},
        "device": _describe_device(model),
        "preprocessing": proof["preprocessing"],
        "quality": proof["quality"],
        "fidelity": proof["fidelity"],
        "seconds": {"load": load_seconds, "reference": proof["seconds"]},
        "memory": {"peak_rss_bytes": machine.peak_rss()},
        "hidden": [name for name in HOST_ONLY if find_spec(name) is None],
    }
    if on_cuda:
        document["placement"] = placement
    return document


def _describe_device(model: Model) -> DeviceDocument:
    # The report's schema names the machine's keys alone and takes the others as they are.
    return cast("DeviceDocument", {**model.choice.device, "numpy": np.__version__})


def this_device() -> DeviceFacts:
    """Return `machine.describe` with the versions of numpy and onnxruntime."""
    version = onnxruntime_version()["onnxruntime"]
    versions = {"numpy": np.__version__, "onnxruntime": version}
    return cast("DeviceFacts", {**machine.describe(), **versions})
