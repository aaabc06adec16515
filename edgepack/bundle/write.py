"""Writing a bundle: the loader, the model, the evidence, and the index of them all."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack import files
from edgepack.bundle import loader
from edgepack.bundle.exact import find_suffix, shrink
from edgepack.errors import EngineError
from edgepack.runtime.bundle.archive import INDEX
from edgepack.runtime.bundle.engines import EngineOptions
from edgepack.runtime.bundle.index import FORMAT, Description, content_digest
from edgepack.runtime.bundle.raw import RawReference
from edgepack.runtime.documents import RecordedQuality
from edgepack.runtime.preprocess.code import Code
from edgepack.runtime.preprocess.reference import digest, probe
from edgepack.runtime.strict_json import encode

if TYPE_CHECKING:
    from edgepack.runtime.documents import FileEntry, IndexDocument, RawEntry, SizeEntry
    from edgepack.runtime.preprocess.code import Function
    from edgepack.runtime.preprocess.protocol import Preprocessing

MODEL = "model/model.onnx"
CLASSES = "preprocess/classes.json"
# The loader does not read zip64, which Python needs beyond this size.
MAX_BYTES = zipfile.ZIP64_LIMIT
# Oldest time that a zip can store; a fixed time keeps two builds identical.
EPOCH = (1980, 1, 1, 0, 0, 0)
# Contents of an entry, or the path of the file with them.
Content = bytes | Path


@dataclass(frozen=True)
class OtherSize:
    """Answers to the first reference sample with one dynamic axis at another size.

    Attributes:
        axis: name of the axis.
        size: a size other than in the reference samples.
        original: per output, the answer of the original.
        built: per output, the answer of this artefact on the build host; empty in a draft.
    """

    axis: str
    size: int
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray] = ()


@dataclass(frozen=True, kw_only=True)
class Contents(Description):
    """Everything that goes into a bundle: its description, and the contents of its entries.

    Attributes:
        model: the serialised ONNX that every engine runs or is built from.
        reference: per input, the arrays of whole feeds; of one size unless they are made of raw
            data.
        original: per output, the answers of the original fp32 model along axis 0.
        built: per output, the answers of this artefact on the build host; None in a draft.
        sizes: one other size of every dynamic axis.
        metric: the task metric, or "".
        provenance: origin of the model: digests and options, no times and no paths.
        tools: versions of the tools of the build.
        requirements: the text of requirements.txt.
        report: entries under report/, by name.
        wheels: files of entries under wheels/, by name.
        engines: entries under engine/, by name: built engines that variants refer to.
        preprocessing: conversion of raw data to the inputs; None for a model that takes arrays.
        class_names: names of the classes, by their index; empty if they are not known.
        postprocessing: the user's function that decodes the outputs; None for none.
        macs: multiply-accumulates of one reference sample by node, for a GPU; empty for a CPU.
        raw: per reference sample, the raw data that `reference` was made of, one for each row of
            its batch; empty for samples that are arrays.
    """

    model: bytes
    reference: Sequence[Sequence[np.ndarray] | np.ndarray]
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray] | None
    metric: str
    provenance: Mapping[str, object]
    tools: Mapping[str, str]
    requirements: str
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    # A draft has neither of these two yet.
    quality: RecordedQuality = field(default_factory=RecordedQuality)
    build: Mapping[str, object] = field(default_factory=dict)
    report: Mapping[str, bytes] = field(default_factory=dict)
    wheels: Mapping[str, Path] = field(default_factory=dict)
    engines: Mapping[str, bytes] = field(default_factory=dict)
    sizes: Sequence[OtherSize] = ()
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] = ()
    raw: Sequence[Sequence[bytes]] = ()
    postprocessing: Function | None = None
    macs: Mapping[str, int] = field(default_factory=dict)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Not `ascontiguousarray`, which turns a scalar into an array of shape (1,).
    plain = np.asarray(array, order="C")
    np.lib.format.write_array(buffer, plain, (1, 0), allow_pickle=False)
    return buffer.getvalue()


def _entries(contents: Contents) -> dict[str, Content]:
    # Names are sorted within each group, so that the same contents give the same file.
    wheels = _below("wheels", contents.wheels)
    decodes = contents.postprocessing is not None
    needs = loader.find_needs(contents.variants, wheels, _describe_kind(contents), decodes)
    return {
        **loader.read_files(needs),
        MODEL: contents.model,
        **_below("engine", contents.engines),
        **_reference_entries(contents),
        **_preprocess_entries(contents),
        "requirements.txt": contents.requirements.encode(),
        **_below("report", contents.report),
        **wheels,
    }


def _describe_kind(contents: Contents) -> str:
    if contents.preprocessing is None:
        return ""
    return str(contents.preprocessing.to_json()["kind"])


def _preprocess_entries(contents: Contents) -> dict[str, Content]:
    """Return the entries that a preprocessing reads, and the names of the classes."""
    entries: dict[str, Content] = {}
    if contents.preprocessing is not None:
        entries.update(sorted(contents.preprocessing.files().items()))
    if contents.postprocessing is not None:
        entries.update(contents.postprocessing.files())
    if contents.class_names:
        entries[CLASSES] = encode({"names": list(contents.class_names)})
    return entries


def _below(folder: str, contents: Mapping[str, Content]) -> dict[str, Content]:
    return {f"{folder}/{name}": content for name, content in sorted(contents.items())}


def _reference_entries(contents: Contents) -> dict[str, Content]:
    """Return the entries of the reference samples and of the answers at other sizes."""
    entries: dict[str, Content] = {}
    if contents.raw:
        for name, data in zip(_raw_names(contents), chain(*contents.raw), strict=True):
            entries[name] = data
        for name, array in zip(_probe_names(contents), contents.reference, strict=False):
            entries[name] = _npy(_stack_probes(array))
    groups = [
        ("input", _stored_inputs(contents)),
        ("original", contents.original),
        ("built", contents.built or ()),
    ]
    for kind, arrays in groups:
        for name, array in zip(_npy_names(kind, arrays), arrays, strict=True):
            entries[name] = _npy(array)
    for number, size in enumerate(contents.sizes):
        for kind, arrays in (("original", size.original), ("built", size.built)):
            names = _npy_names(f"size-{number}-{kind}", arrays)
            for name, array in zip(names, arrays, strict=True):
                # A single sample, along an axis 0 of size 1.
                entries[name] = _npy(array[None])
    return entries


def _stack_probes(samples: Iterable[np.ndarray]) -> np.ndarray:
    """Return the probes of some samples, as many elements of each as the smallest sample has."""
    probes = [probe(sample) for sample in samples]
    shortest = min(map(len, probes))
    return np.stack([values[:shortest] for values in probes])


def _stored_inputs(contents: Contents) -> list[np.ndarray]:
    """Return the arrays of the inputs as they are stored; none if there are raw samples."""
    # edgepack on the build host does not run the code of a bundle, and so needs the arrays.
    if contents.raw and not isinstance(contents.preprocessing, Code):
        return []
    return [shrink(np.stack(list(array))) for array in contents.reference]


def _raw_names(contents: Contents) -> list[str]:
    """Return the names of the raw samples: reference/raw-000.jpg, reference/raw-001.png."""
    names = []
    for number, data in enumerate(chain(*contents.raw)):
        names.append(f"reference/raw-{number:03}.{find_suffix(data)}")
    return names


def _probe_names(contents: Contents) -> list[str]:
    """Return the names of the probes; none if every device makes the same arrays."""
    if contents.preprocessing is None or contents.preprocessing.least_db is None:
        return []
    return _npy_names("probe", contents.reference)


def _describe_raw(contents: Contents) -> RawEntry:
    """Describe the raw samples, and what this host made of them."""
    if contents.preprocessing is None:
        raise ValueError("raw samples need a preprocessing")
    hashes = tuple(tuple(map(digest, array)) for array in contents.reference)
    names, versions = _probe_names(contents), contents.preprocessing.versions()
    return RawReference(tuple(_raw_names(contents)), hashes, tuple(names), versions).to_json()


def _npy_names(prefix: str, arrays: Sequence[object]) -> list[str]:
    """Return the entries' names: two outputs of size 0 are reference/size-0-original-{0,1}.npy."""
    return [f"reference/{prefix}-{i}.npy" for i in range(len(arrays))]


def _describe_file(content: Content) -> FileEntry:
    if isinstance(content, Path):
        return {"sha256": files.sha256(content), "bytes": content.stat().st_size}
    return {"sha256": sha256(content).hexdigest(), "bytes": len(content)}


def _describe_size(number: int, size: OtherSize) -> SizeEntry:
    return {
        "axis": size.axis,
        "size": size.size,
        "original": _npy_names(f"size-{number}-original", size.original),
        "built": _npy_names(f"size-{number}-built", size.built),
    }


def _index(contents: Contents, entries: Mapping[str, Content]) -> IndexDocument:
    samples = 0
    if contents.reference:
        samples = len(contents.reference[0])
    gates, parts, file_entries = {}, {}, {}
    for question, bounds in contents.gates.items():
        gates[question] = dict(bounds)
    for output in contents.parts:
        parts[output] = [part.to_json() for part in contents.parts[output]]
    for name, content in entries.items():
        file_entries[name] = _describe_file(content)
    document: IndexDocument = {
        "format": FORMAT,
        "name": contents.name,
        "target": contents.target,
        "device": contents.device,
        "inputs": [tensor.to_json() for tensor in contents.inputs],
        "outputs": [tensor.to_json() for tensor in contents.outputs],
        "model": MODEL,
        "variants": [variant.to_json() for variant in contents.variants],
        "engine_options": contents.engine_options.to_json(),
        "reference": {
            "samples": samples,
            "inputs": _npy_names("input", _stored_inputs(contents)),
            "original": _npy_names("original", contents.original),
            "built": _npy_names("built", contents.built or ()),
        },
        "sizes": [_describe_size(number, size) for number, size in enumerate(contents.sizes)],
        "gates": gates,
        "metric": contents.metric or None,
        "parts": parts,
        "quality": contents.quality,
        "build": dict(contents.build),
        "provenance": dict(contents.provenance),
        "tools": dict(contents.tools),
        "files": file_entries,
    }
    if contents.raw:
        document["reference"]["raw"] = _describe_raw(contents)
    if contents.postprocessing is not None:
        document["postprocessing"] = contents.postprocessing.to_json()
    if contents.macs:
        document["macs"] = dict(contents.macs)
    # Bundles of arrays have neither key.
    if contents.preprocessing is not None:
        document["preprocessing"] = contents.preprocessing.to_json()
    if contents.class_names:
        document["classes"] = CLASSES
    # The digest covers the rest of the document, without the build host.
    document["content_digest"] = content_digest(document)
    return document


def encode_compact(document: Mapping[str, object]) -> bytes:
    """Encode a document for a bundle without spaces, which are a third of an index."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def write(path: Path, contents: Contents) -> str:
    """Write a bundle to `path` and return its content digest.

    The same contents give the same bytes. The file is written in place, so pass a temporary path
    and publish it afterwards. Raises EngineError if the model is too large for the format, and
    HostError if the file cannot be written.
    """
    entries = _entries(contents)
    document = _index(contents, entries)
    total = sum(entry["bytes"] for entry in document["files"].values())
    # 16 MiB are reserved for headers and the index.
    if total > MAX_BYTES - (1 << 24):
        hint = "use fewer reference samples in the manifest, or a smaller model"
        if contents.wheels:
            hint = "remove --wheels"
        raise EngineError(
            "bundle-too-large",
            "the bundle would be too large",
            why=f"its files have {total:,} bytes; the format holds at most {MAX_BYTES:,}",
            hint=hint,
        )
    # Python runs __main__.py and the loader reads the index, so both come first.
    first: dict[str, Content] = {
        loader.MAIN: entries.pop(loader.MAIN),
        INDEX: encode_compact(document),
    }
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            for name, content in {**first, **entries}.items():
                info = zipfile.ZipInfo(name, EPOCH)
                # Unix, whatever the build host is, and the permissions of a plain file.
                info.create_system = 3
                info.external_attr = 0o644 << 16
                with archive.open(info, "w") as entry:
                    if isinstance(content, Path):
                        with content.open("rb") as file:
                            shutil.copyfileobj(file, entry, files.CHUNK)
                    else:
                        entry.write(content)
        files.sync(path)
    except OSError as error:
        raise files.unwritable(path, error) from error
    return document["content_digest"]
