"""Writing a bundle: the loader, the model, the proof, and the index over them all."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import files
from edgepack.bundle import loader
from edgepack.errors import EngineError
from edgepack.runtime.bundle.archive import INDEX
from edgepack.runtime.bundle.document import encode
from edgepack.runtime.bundle.engines import EngineOptions, Variant
from edgepack.runtime.bundle.index import FORMAT, content_digest
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor

MODEL = "model/model.onnx"
# The loader reads no zip64, and Python writes none of this size without it.
MAX_BYTES = zipfile.ZIP64_LIMIT
# The oldest time that a zip can hold; two builds must give the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)
# An entry: its bytes, or the file that has them.
Content = bytes | Path


@dataclass(frozen=True)
class OtherSize:
    """Answers to the first reference sample with one dynamic axis brought to another size.

    Attributes:
        axis: its name.
        size: other than in the reference samples.
        original: per output, what the original answered.
        built: per output, what this artefact answered here; empty in a draft.
    """

    axis: str
    size: int
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Contents:
    """All that goes into a bundle.

    Attributes:
        name: the model's name.
        target: the target profile's name.
        device: what every device must be: arch, isa, python; a Jetson's jetpack.
        inputs: of the model.
        outputs: of the model.
        model: the serialised ONNX that every engine runs or is built from.
        variants: the ways to run it, best first.
        reference: per input, an array of whole feeds along axis 0.
        original: per output, what the original fp32 model answered, along axis 0.
        built: per output, what this artefact answered here; None in a draft.
        sizes: one other size of every dynamic axis.
        gates: question to gate to bound.
        metric: the task metric, or "".
        parts: per output, the parts that its errors are measured in; integers have none.
        quality: what the build measured on the evaluation set; empty in a draft.
        build: this host; empty in a draft.
        provenance: where the model came from: digests and options, no times and no paths.
        tools: versions of what made it.
        requirements: the text of requirements.txt.
        report: entries under report/, by name.
        wheels: files of entries under wheels/, by name.
        engine_options: what an engine is built with on the device.
        engines: entries under engine/, by name: built engines that variants name.
    """

    name: str
    target: str
    device: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    model: bytes
    variants: Sequence[Variant]
    reference: Sequence[np.ndarray]
    original: Sequence[np.ndarray]
    built: Sequence[np.ndarray] | None
    gates: Mapping[str, Mapping[str, Any]]
    metric: str
    parts: Mapping[str, Sequence[Part]]
    provenance: Mapping[str, Any]
    tools: Mapping[str, str]
    requirements: str
    quality: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, bytes] = field(default_factory=dict)
    wheels: Mapping[str, Path] = field(default_factory=dict)
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    engines: Mapping[str, bytes] = field(default_factory=dict)
    sizes: Sequence[OtherSize] = ()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Not `ascontiguousarray`, which makes an array of one axis of a single number.
    plain = np.asarray(array, order="C")
    np.lib.format.write_array(buffer, plain, (1, 0), allow_pickle=False)
    return buffer.getvalue()


def _entries(contents: Contents) -> dict[str, Content]:
    entries: dict[str, Content] = {
        **loader.read_files(),
        MODEL: contents.model,
        **{f"engine/{name}": data for name, data in sorted(contents.engines.items())},
    }
    for kind, arrays in _reference(contents).items():
        for i, array in enumerate(arrays):
            entries[f"reference/{kind}-{i}.npy"] = _npy(array)
    for number, size in enumerate(contents.sizes):
        for kind, names in _size_entries(number, size).items():
            for name, array in zip(names, getattr(size, kind), strict=True):
                entries[name] = _npy(array[None])
    entries["requirements.txt"] = contents.requirements.encode()
    entries.update({f"report/{name}": data for name, data in sorted(contents.report.items())})
    entries.update({f"wheels/{name}": path for name, path in sorted(contents.wheels.items())})
    return entries


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _sha256(content: Content) -> str:
    return files.sha256(content) if isinstance(content, Path) else sha256(content).hexdigest()


def _reference(contents: Contents) -> dict[str, Sequence[np.ndarray]]:
    return {
        "input": contents.reference,
        "original": contents.original,
        "built": contents.built or (),
    }


def _size_entries(number: int, size: OtherSize) -> dict[str, list[str]]:
    return {
        kind: [f"reference/size-{number}-{kind}-{i}.npy" for i in range(len(getattr(size, kind)))]
        for kind in ("original", "built")
    }


def _index(contents: Contents, entries: Mapping[str, Content]) -> dict[str, Any]:
    reference = _reference(contents)
    named = {
        kind: [f"reference/{kind}-{i}.npy" for i in range(len(arrays))]
        for kind, arrays in reference.items()
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": contents.name,
        "target": contents.target,
        "device": dict(contents.device),
        "inputs": [tensor.to_json() for tensor in contents.inputs],
        "outputs": [tensor.to_json() for tensor in contents.outputs],
        "model": MODEL,
        "variants": [variant.to_json() for variant in contents.variants],
        "engine_options": contents.engine_options.to_json(),
        "reference": {
            "samples": len(contents.reference[0]) if contents.reference else 0,
            "inputs": named["input"],
            "original": named["original"],
            "built": named["built"],
        },
        "sizes": [
            {"axis": size.axis, "size": size.size, **_size_entries(number, size)}
            for number, size in enumerate(contents.sizes)
        ],
        "gates": {question: dict(bounds) for question, bounds in contents.gates.items()},
        "metric": contents.metric or None,
        "parts": {
            output: [part.to_json() for part in parts] for output, parts in contents.parts.items()
        },
        "quality": dict(contents.quality),
        "build": dict(contents.build),
        "provenance": dict(contents.provenance),
        "tools": dict(contents.tools),
        "files": {
            name: {"sha256": _sha256(content), "bytes": _size(content)}
            for name, content in entries.items()
        },
    }
    document["content_digest"] = content_digest(document)
    return document


def write(path: Path, contents: Contents) -> str:
    """Write a bundle to `path` and return its content digest.

    The same contents give the same bytes. The file is written in place: give a temporary one and
    publish it afterwards. Raises EngineError where the model is too large for the format, and
    HostError where the file cannot be written.
    """
    entries = _entries(contents)
    total = sum(map(_size, entries.values()))
    if total > MAX_BYTES - (1 << 24):
        raise EngineError(
            "bundle-too-large",
            "the bundle would be too large",
            why=f"its files have {total:,} bytes; the format holds {MAX_BYTES:,}",
            hint="leave out --wheels"
            if contents.wheels
            else "fewer reference samples in the manifest, or a smaller model",
        )
    document = _index(contents, entries)
    first: dict[str, Content] = {loader.MAIN: entries.pop(loader.MAIN), INDEX: encode(document)}
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            for name, content in {**first, **entries}.items():
                info = zipfile.ZipInfo(name, EPOCH)
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
    return str(document["content_digest"])
