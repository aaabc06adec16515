"""Writing a bundle: the loader, the model, the evidence, and the index of them all."""

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


@dataclass(frozen=True)
class Contents:
    """Everything that goes into a bundle.

    Attributes:
        name: the model's name.
        target: the target profile's name.
        device: requirements on every device: arch, isa, python; a Jetson's jetpack.
        inputs: inputs of the model.
        outputs: outputs of the model.
        model: the serialised ONNX that every engine runs or is built from.
        variants: the ways to run it, best first.
        reference: per input, an array of whole feeds along axis 0.
        original: per output, the answers of the original fp32 model along axis 0.
        built: per output, the answers of this artefact on the build host; None in a draft.
        sizes: one other size of every dynamic axis.
        gates: question to gate to bound.
        metric: the task metric, or "".
        parts: per output, its parts for measuring errors; integers have none.
        quality: measurements of the build on the evaluation set; empty in a draft.
        build: description of the build host; empty in a draft.
        provenance: origin of the model: digests and options, no times and no paths.
        tools: versions of the tools of the build.
        requirements: the text of requirements.txt.
        report: entries under report/, by name.
        wheels: files of entries under wheels/, by name.
        engine_options: options for building an engine on the device.
        engines: entries under engine/, by name: built engines that variants refer to.
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
    # Not `ascontiguousarray`, which turns a scalar into an array of shape (1,).
    plain = np.asarray(array, order="C")
    np.lib.format.write_array(buffer, plain, (1, 0), allow_pickle=False)
    return buffer.getvalue()


def _entries(contents: Contents) -> dict[str, Content]:
    # Names are sorted within each group, so that the same contents give the same file.
    wheels = [f"wheels/{name}" for name in contents.wheels]
    needs = loader.find_needs(contents.variants, wheels)
    entries: dict[str, Content] = {
        **loader.read_files(needs),
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
    # Size 0 with one output: reference/size-0-original-0.npy and reference/size-0-built-0.npy.
    return {
        kind: [f"reference/size-{number}-{kind}-{i}.npy" for i in range(len(getattr(size, kind)))]
        for kind in ("original", "built")
    }


def _index(contents: Contents, entries: Mapping[str, Content]) -> dict[str, Any]:
    reference = _reference(contents)
    names = {
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
            "inputs": names["input"],
            "original": names["original"],
            "built": names["built"],
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
    # The digest covers the rest of the document, without the build host.
    document["content_digest"] = content_digest(document)
    return document


def write(path: Path, contents: Contents) -> str:
    """Write a bundle to `path` and return its content digest.

    The same contents give the same bytes. The file is written in place, so pass a temporary path
    and publish it afterwards. Raises EngineError if the model is too large for the format, and
    HostError if the file cannot be written.
    """
    entries = _entries(contents)
    total = sum(map(_size, entries.values()))
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
    document = _index(contents, entries)
    # Python runs __main__.py and the loader reads the index, so both come first.
    first: dict[str, Content] = {loader.MAIN: entries.pop(loader.MAIN), INDEX: encode(document)}
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
    return str(document["content_digest"])
