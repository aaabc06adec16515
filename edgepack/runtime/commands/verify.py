"""`verify`: does this device compute what was built, how near is that to what was trained?"""

from __future__ import annotations

import io
import os
import struct
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.index import Index, OtherSize, check_all, check_file, read_index
from ..device import machine
from ..device.here import onnxruntime
from ..errors import BundleError, InputError
from ..model import Model, open_model
from ..parity.accuracy import TOP
from ..parity.gates import judge, judge_reference, judge_size
from ..parity.metrics import Quality, compare
from ..parity.sizes import LARGEST_GROWTH, LARGEST_GROWTH_BY, LARGEST_STACK, feed_at_size

FORMAT = "edgepack-verdict/1"
# What must not be needed on a device; the verdict tells whether it could have been imported.
HOST_ONLY = ("torch", "edgepack")

_LENGTH = struct.Struct("<Q")


def read_arrays(
    archive: Archive, index: Index, names: Sequence[str], rows: int
) -> List[np.ndarray]:
    """Return the .npy entries of those names, their hashes checked; never unpickles.

    Raises BundleError where one is damaged, or does not hold that many rows.
    """
    arrays = []
    for name in names:
        stream = io.BytesIO(check_file(archive, index, name))
        try:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if array.dtype.kind not in "biuf":
                raise ValueError("its elements are {}, not numbers".format(array.dtype))
            if array.shape[:1] != (rows,):
                raise ValueError("its shape is {} for {} samples".format(array.shape, rows))
            arrays.append(array)
        except Exception as error:  # numpy reads a header with Python's tokenizer and parser
            raise BundleError(
                "bundle-reference",
                "the bundle's reference samples cannot be read",
                why="{}: {}".format(name, str(error) or type(error).__name__),
                hint="fetch the bundle again from where it was built",
            ) from error
    return arrays


def reference_feeds(
    archive: Archive, index: Index, most: int = 0
) -> Iterator[Dict[str, np.ndarray]]:
    """The reference inputs, call by call. Each row of the stored arrays is one whole feed.

    Args:
        archive: the open bundle.
        index: of it.
        most: how many at most; 0 takes all.
    """
    arrays = read_arrays(archive, index, index.reference.inputs, index.reference.samples)
    for i in range(min(most or index.reference.samples, index.reference.samples)):
        # An ellipsis, so that a feed of no axis stays an array.
        yield {tensor.name: array[i, ...] for tensor, array in zip(index.inputs, arrays)}


def answer(model: Model, calls: Iterator[Mapping[str, np.ndarray]]) -> List[List[np.ndarray]]:
    """Per call, the outputs in the index's order."""
    names = [tensor.name for tensor in model.outputs]
    return [[outputs[name] for name in names] for outputs in map(model.run, calls)]


def _question(on: str, metrics: Mapping[str, Any], gates: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Return one kind of samples with its gates: `samples`, `outputs`, `metric` and the verdict."""
    return {
        "on": on,
        **metrics,
        "gates": gates,
        # A question without a gate is not answered.
        "passed": bool(gates) and all(gate["passed"] for gate in gates),
    }


def _measure(
    index: Index, expected: Sequence[np.ndarray], answers: Sequence[Sequence[np.ndarray]]
) -> Dict[str, Any]:
    """Return the metrics of answers, call by call, against the rows of the expected arrays."""
    pairs = [([array[i] for array in expected], outputs) for i, outputs in enumerate(answers)]
    outputs = compare(index.outputs, index.parts, pairs, index.inputs)
    return {"samples": len(answers), "outputs": outputs, "metric": None}


def read_frames(stream: BinaryIO) -> Iterator[Dict[str, np.ndarray]]:
    """Shards of an evaluation set, as `frame` wrote them, one in memory at a time."""
    while True:
        header = stream.read(_LENGTH.size)
        if not header:
            return
        length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else 0
        data = stream.read(length)
        if not data or len(data) != length:
            raise InputError(
                "evaluation-cut",
                "the evaluation samples end midway",
                why="a shard of {} bytes has {}".format(length, len(data)),
                hint="this stream comes from `edgepack build`; look there for its error",
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as shard:
            yield {name: shard[name] for name in shard.files}


def frame(arrays: Mapping[str, np.ndarray]) -> bytes:
    """One shard of an evaluation set: an .npz with its length in front."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return _LENGTH.pack(buffer.tell()) + buffer.getvalue()


def _on_evaluation(
    model: Model, stream: BinaryIO, metric: Optional[str], sizes: Sequence[_AtSize]
) -> Dict[str, Any]:
    """Return the quality on a stream of shards, each one call, and at other sizes.

    A shard holds input-N and original-N, `count` and, where there are any, `labels`.
    """
    index = model.index
    quality = Quality(index.outputs, index.parts, metric or "", index.inputs)
    for shard in read_frames(stream):
        outputs = model.run(
            {t.name: shard["input-{}".format(i)] for i, t in enumerate(index.inputs)}
        )
        quality.update(
            [shard["original-{}".format(i)] for i in range(len(index.outputs))],
            [outputs[tensor.name] for tensor in index.outputs],
            shard.get("labels"),
            int(shard["count"]),
        )
    if not quality.samples:
        raise InputError(
            "evaluation-cut",
            "there are no evaluation samples",
            why="the stream of them is empty",
            hint="this stream comes from `edgepack build`; look there for its error",
        )
    metrics = quality.result()
    gates = judge(index.gates["quality"], metrics["outputs"], metrics["metric"])
    gates += _judge_sizes(index, sizes, metrics["outputs"])
    return _question("evaluation", metrics, gates)


@dataclass(frozen=True)
class _AtSize:
    """Answers with one dynamic axis at another size.

    Attributes:
        label: of the size.
        original: per output, the original's answer.
        built: the same of the build host; empty in a draft.
        answers: the same of this device.
    """

    label: str
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray]
    answers: Sequence[np.ndarray]

    def compare(self, index: Index, expected: Sequence[np.ndarray]) -> Dict[str, Dict[str, Any]]:
        """Return the metrics of this device's answers, by output and size."""
        outputs = compare(index.outputs, index.parts, [(expected, self.answers)], index.inputs)
        return {"{} at {}".format(name, self.label): each for name, each in outputs.items()}


def _at_sizes(archive: Archive, model: Model) -> List[_AtSize]:
    """Run the first reference sample at one other size of every dynamic axis.

    A graph may be right for a single sample and wrong from the second row of a batch on.
    """
    index = model.index
    if not index.sizes:
        return []
    feeds = list(reference_feeds(archive, index, LARGEST_STACK))
    results = []
    for size in index.sizes:
        _check_size(index, size, feeds[0])
        feed = feed_at_size(index.inputs, feeds, size.axis, size.size)
        (answers,) = answer(model, iter([feed]))
        original, built = (
            [array[0] for array in read_arrays(archive, index, names, 1)]
            for names in (size.original, size.built)
        )
        results.append(_AtSize(size.label, original, built, answers))
    return results


def _check_size(index: Index, size: OtherSize, feed: Mapping[str, np.ndarray]) -> None:
    """Refuse a size that no build writes, before so much memory is filled."""
    usual = max(
        feed[tensor.name].shape[tensor.shape.index(size.axis)]
        for tensor in index.inputs
        if size.axis in tensor.shape
    )
    if size.size > LARGEST_GROWTH * usual + LARGEST_GROWTH_BY:
        raise BundleError(
            "bundle-reference",
            "the bundle's reference samples cannot be read",
            why="{} is far from the {} of the samples".format(size.label, usual),
            hint="fetch the bundle again from where it was built",
        )


def _judge_sizes(
    index: Index, sizes: Sequence[_AtSize], evaluated: Mapping[str, Mapping[str, Any]]
) -> List[Dict[str, Any]]:
    gates: List[Dict[str, Any]] = []
    for size in sizes:
        for tensor in index.outputs:
            outputs = size.compare(index, size.original)
            name = "{} at {}".format(tensor.name, size.label)
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
) -> Dict[str, Any]:
    """Return the quality on the reference samples, within what the build measured.

    Raises BundleError where the bundle's own answers are not those that the build measured.
    """
    metrics = _measure(index, original, answers)
    if not index.quality:
        gates = judge(index.gates["quality"], metrics["outputs"])
        gates += _judge_sizes(index, sizes, metrics["outputs"])
        return _question("reference", metrics, [*gates, _not_accepted(index)])
    _check_recorded(index, original, built)
    host = _measure(index, original, _rows(built, len(answers)))["outputs"]
    gates = judge_reference(
        index.quality["outputs"],
        host,
        metrics["outputs"],
        index.parts,
        index.gates["fidelity"],
    )
    gates += _judge_sizes(index, sizes, index.quality["outputs"])
    if index.quality["passed"] is not True:
        gates.append(_not_accepted(index))
    return _question("reference", metrics, gates)


def _not_accepted(index: Index) -> Dict[str, Any]:
    """Return the gate that a draft misses, and a bundle that its build refused."""
    gate = {"name": "built", "output": index.name, "bound": True, "measured": False}
    return {**gate, "passed": False, "note": ""}


def _check_recorded(
    index: Index, original: Sequence[np.ndarray], built: Sequence[np.ndarray]
) -> None:
    """Refuse answers, the original's or the build host's, other than those that were measured."""
    rows = _rows(built, index.reference.samples)
    measured = _measure(index, original, rows)["outputs"]
    for tensor in index.outputs:
        recorded = index.quality["reference"][tensor.name]
        figures = [(measured[tensor.name], recorded, "top1_agreement")]
        for now, then in zip(measured[tensor.name]["parts"], recorded["parts"]):
            figures += [(now, then, "worst_error"), (now, then, "max_abs")]
        for now, then, key in figures:
            if not _close(now[key], then.get(key)):
                raise BundleError(
                    "bundle-answers",
                    "the bundle's answers are not those that its build measured",
                    why="{}: {} is {}, the build recorded {}".format(
                        tensor.name, key, now[key], then.get(key)
                    ),
                    hint="do not use it; fetch it again from where it was built",
                )


def _rows(arrays: Sequence[np.ndarray], count: int) -> List[List[np.ndarray]]:
    """Return the first answers of stored arrays, call by call."""
    return [[array[i] for array in arrays] for i in range(count)]


def _close(a: Optional[float], b: Any) -> bool:
    if a is None or b is None:
        return a is None and b is None
    # The sum of squares depends on the order of its terms, and so on numpy's version.
    return bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))


def on_samples(
    archive: Archive, model: Model, evaluation: Optional[BinaryIO] = None, most: int = 0
) -> Dict[str, Any]:
    """Both questions, asked of a model that runs.

    Args:
        archive: the open bundle.
        model: of it.
        evaluation: as `verify` takes it.
        most: how many reference samples at most; 0 takes all.

    Returns "quality", "fidelity", "passed" and the seconds that the reference samples took.
    """
    index = model.index
    started = time.perf_counter()
    answers = answer(model, reference_feeds(archive, index, most))
    seconds = time.perf_counter() - started
    original, built = (
        read_arrays(archive, index, names, index.reference.samples)
        for names in (index.reference.original, index.reference.built)
    )
    # An emulated device has time for a few samples alone.
    sizes = [] if most else _at_sizes(archive, model)
    metric = index.raw.get("metric")
    if metric is not None and metric not in TOP:
        raise BundleError(
            "bundle-metric",
            "the bundle names a metric that this loader does not have",
            why="it names {!r}; there are {}".format(metric, ", ".join(TOP)),
            hint="build it with the version of edgepack whose loader has it",
        )
    fidelity = None
    if built:
        metrics = _measure(index, built, answers)
        gates = judge(index.gates["fidelity"], metrics["outputs"])
        for size in sizes:
            gates += judge(index.gates["fidelity"], size.compare(index, size.built))
        fidelity = _question("reference", metrics, gates)
    if evaluation is not None:
        quality = _on_evaluation(model, evaluation, metric, sizes)
        rows = _rows(built, index.reference.samples if built else 0)
        quality["reference"] = _measure(index, original, rows)["outputs"]
    else:
        quality = _on_reference(index, original, built, answers, sizes)
    return {
        "quality": quality,
        "fidelity": fidelity,
        "passed": quality["passed"] and (fidelity is None or fidelity["passed"]),
        "seconds": seconds,
    }


def verify(
    path: str,
    *,
    evaluation: Optional[BinaryIO] = None,
    threads: int = 0,
    stand_in: bool = False,
    variant: str = "",
    samples: int = 0,
) -> Dict[str, Any]:
    """Prove a bundle on this device.

    Every byte is hashed; the reference inputs run through the loader; the answers are held
    against the original model's (quality) and against those of the build host (fidelity).

    Args:
        path: the bundle.
        evaluation: a stream of samples with the original's answers (`frame`), for quality in
            place of the reference samples; the build gives it.
        threads: threads within an operator; 0 takes every physical core.
        stand_in: this is the build host, and stands in for the device.
        variant: the name of the one to prove; "" for the best that fits.
        samples: how many of the reference samples at most; 0 takes all.

    Returns the verdict ("edgepack-verdict/1") as JSON values; `passed` is the whole of it.
    Raises BundleError, DeviceError or InputError where it could not run.
    """
    with Archive(path) as archive:
        index = read_index(archive)
        hashed, digest = check_all(archive, index), require_checksum(archive)
        started = time.perf_counter()
        model = open_model(archive, index, threads, stand_in=stand_in, variant=variant)
        load_seconds = time.perf_counter() - started
        found = on_samples(archive, model, evaluation, samples)
    return {
        "format": FORMAT,
        "passed": found["passed"],
        "proven": index.proven,
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
        "device": {**model.choice.device, "numpy": np.__version__},
        "quality": found["quality"],
        "fidelity": found["fidelity"],
        "seconds": {"load": load_seconds, "reference": found["seconds"]},
        "memory": {"peak_rss_bytes": machine.peak_rss()},
        "hidden": [name for name in HOST_ONLY if find_spec(name) is None],
    }


def this_device() -> Dict[str, Any]:
    """`machine.describe` with the versions of numpy and onnxruntime."""
    version = onnxruntime()["onnxruntime"]
    return {**machine.describe(), "numpy": np.__version__, "onnxruntime": version}
