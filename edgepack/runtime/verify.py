"""`verify`: does this device compute what was built, how near is that to what was trained?"""

from __future__ import annotations

import io
import os
import struct
import time
from importlib.util import find_spec
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np

from . import device
from .archive import Archive
from .errors import BundleError, InputError
from .gates import excuse, judge
from .here import onnxruntime
from .index import Index, check_all, check_file, read_index
from .metrics import TOP, Accuracy, Parity
from .model import Model, open_model
from .tensor import Tensor

FORMAT = "edgepack-verdict/1"
# What must not be needed on a device; the verdict tells whether it could have been imported.
HOST_ONLY = ("torch", "edgepack")

_LENGTH = struct.Struct("<Q")


def read_arrays(archive: Archive, index: Index, names: Sequence[str]) -> List[np.ndarray]:
    """The .npy entries of those names, proved and decoded. Never unpickles."""
    arrays = []
    for name in names:
        try:
            stream = io.BytesIO(check_file(archive, index, name))
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if array.shape[:1] != (index.reference.samples,):
                raise ValueError(
                    "its shape is {} for {} samples".format(array.shape, index.reference.samples)
                )
            arrays.append(array)
        except (ValueError, MemoryError) as error:
            raise BundleError(
                "bundle-reference",
                "the bundle's reference samples cannot be read",
                why="{}: {}".format(name, error),
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
    arrays = read_arrays(archive, index, index.reference.inputs)
    for i in range(min(most or index.reference.samples, index.reference.samples)):
        yield {tensor.name: array[i] for tensor, array in zip(index.inputs, arrays)}


def answer(model: Model, calls: Iterator[Mapping[str, np.ndarray]]) -> List[List[np.ndarray]]:
    """Per call, the outputs in the index's order."""
    names = [tensor.name for tensor in model.outputs]
    return [[outputs[name] for name in names] for outputs in map(model.run, calls)]


def _question(
    on: str,
    samples: int,
    tensors: Sequence[Tensor],
    parities: Sequence[Parity],
    bounds: Mapping[str, Any],
    metric: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    outputs = {tensor.name: parity.result() for tensor, parity in zip(tensors, parities)}
    gates = judge(bounds, outputs, metric)
    return {
        "on": on,
        "samples": samples,
        "outputs": outputs,
        "metric": metric,
        "gates": gates,
        # A question without a gate is not answered.
        "passed": bool(gates) and all(gate["passed"] for gate in gates),
    }


def _parities(tensors: Sequence[Tensor]) -> List[Parity]:
    return [Parity(tensor.kind == "scores") for tensor in tensors]


def _on_reference(
    index: Index,
    expected: Sequence[np.ndarray],
    found: Sequence[Sequence[np.ndarray]],
    question: str,
) -> Dict[str, Any]:
    parities = _parities(index.outputs)
    for i, outputs in enumerate(found):
        for parity, array, measured in zip(parities, expected, outputs):
            parity.update(array[i], measured)
    return _question("reference", len(found), index.outputs, parities, index.gates[question])


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


def _on_evaluation(model: Model, stream: BinaryIO, metric: Optional[str]) -> Dict[str, Any]:
    """Quality on a stream of shards, each one call.

    A shard holds input-N and original-N, `count` and, where there are any, `labels`.
    """
    index = model.index
    parities = _parities(index.outputs)
    accuracy = Accuracy(metric) if metric else None
    scores = next((i for i, t in enumerate(index.outputs) if t.kind == "scores"), 0)
    samples = 0
    for shard in read_frames(stream):
        inputs = {t.name: shard["input-{}".format(i)] for i, t in enumerate(index.inputs)}
        originals = [shard["original-{}".format(i)] for i in range(len(index.outputs))]
        labels = shard.get("labels")
        outputs = model.run(inputs)
        measured = [outputs[tensor.name] for tensor in index.outputs]
        for parity, original, found in zip(parities, originals, measured):
            parity.update(original, found)
        if accuracy and labels is not None:
            accuracy.update(originals[scores], measured[scores], labels)
        samples += int(shard["count"])
    return _question(
        "evaluation",
        samples,
        index.outputs,
        parities,
        index.gates["quality"],
        accuracy.result() if accuracy else None,
    )


def _remember(
    index: Index,
    quality: Dict[str, Any],
    original: Sequence[np.ndarray],
    built: Sequence[np.ndarray],
) -> None:
    """Lay what the build found on its whole evaluation set over what a few samples can tell."""
    if not index.quality:
        return
    if index.quality.get("passed") is True and built:
        host = _parities(index.outputs)
        for parity, expected, answered in zip(host, original, built):
            parity.update(expected, answered)
        excuse(quality["gates"], {t.name: p.result() for t, p in zip(index.outputs, host)})
        quality["passed"] = bool(quality["gates"]) and all(g["passed"] for g in quality["gates"])
    elif index.quality.get("passed") is not True:
        gate = {"name": "built", "output": index.name, "bound": True, "measured": False}
        quality["gates"].append({**gate, "passed": False, "note": ""})
        quality["passed"] = False


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
    found = answer(model, reference_feeds(archive, index, most))
    seconds = time.perf_counter() - started
    original, built = (
        [array[: len(found)] for array in read_arrays(archive, index, names)]
        for names in (index.reference.original, index.reference.built)
    )
    metric = index.raw.get("metric")
    if metric is not None and metric not in TOP:
        raise BundleError(
            "bundle-metric",
            "the bundle names a metric that this loader does not have",
            why="it names {!r}; there are {}".format(metric, ", ".join(TOP)),
            hint="build it with the version of edgepack whose loader has it",
        )
    quality = (
        _on_evaluation(model, evaluation, metric)
        if evaluation is not None
        else _on_reference(index, original, found, "quality")
    )
    if evaluation is None:
        _remember(index, quality, original, built)
    fidelity = _on_reference(index, built, found, "fidelity") if built else None
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
        hashed = check_all(archive, index)
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
            "bytes": os.path.getsize(path),
            "model_bytes": index.files[index.model][1],
        },
        "variant": model.choice.to_json(),
        "integrity": {"files": len(index.files), "bytes": hashed},
        "device": {**model.choice.device, "numpy": np.__version__},
        "quality": found["quality"],
        "fidelity": found["fidelity"],
        "seconds": {"load": load_seconds, "reference": found["seconds"]},
        "memory": {"peak_rss_bytes": device.peak_rss()},
        "hidden": [name for name in HOST_ONLY if find_spec(name) is None],
    }


def this_device() -> Dict[str, Any]:
    """`device.describe` with the versions of numpy and onnxruntime."""
    version = onnxruntime()["onnxruntime"]
    return {**device.describe(), "numpy": np.__version__, "onnxruntime": version}
