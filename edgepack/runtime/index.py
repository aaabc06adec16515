"""`bundle.json`: what the bundle is, what it needs, and the hash of every other file in it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Tuple

from .archive import INDEX, MAX_INDEX_BYTES, Archive
from .errors import BundleError
from .tensor import Tensor

FORMAT = "edgepack/1"
# What two builds from the same inputs need not share: the report holds times, and vendors do not
# build engines deterministically.
NOT_CONTENT = ("report/", "engine/")
MAX_DEPTH = 32
DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("{}int{}".format(sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)),
)

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Reference:
    """The samples that the bundle proves itself on.

    Attributes:
        samples: how many.
        inputs: per input, the .npy file; its axis 0 counts the samples, each of them a whole feed.
        original: per output, what the original fp32 model answered.
        built: per output, what this artefact answered on the build host; empty in a draft.
    """

    samples: int
    inputs: Tuple[str, ...]
    original: Tuple[str, ...]
    built: Tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """A validated `bundle.json`.

    Attributes:
        name: the model's name.
        target: the target profile's name.
        device: what the device must be: arch, isa, engine, engine_version, python.
        inputs: of the model.
        outputs: of the model.
        model: the entry that the engine runs.
        reference: the samples that the bundle proves itself on.
        gates: question ("quality", "fidelity") to gate to bound.
        quality: what the build measured on the whole evaluation set, or empty.
        build: the host that gave `reference.built`: arch, cpu, isa, engine version.
        files: name to (SHA-256, bytes) of every entry but `bundle.json`.
        content_digest: SHA-256 of all that two builds from the same inputs share.
        raw: the document as it was read.
    """

    name: str
    target: str
    device: Mapping[str, Any]
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    model: str
    reference: Reference
    gates: Mapping[str, Mapping[str, float]]
    quality: Mapping[str, Any]
    build: Mapping[str, Any]
    files: Mapping[str, Tuple[str, int]]
    content_digest: str
    raw: Mapping[str, Any]

    @property
    def proven(self) -> bool:
        """False where the build had random numbers in place of samples."""
        provenance = self.raw.get("provenance")
        return not isinstance(provenance, dict) or provenance.get("proven") is not False


def encode(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, ASCII, no NaN."""
    text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    return text.encode("ascii") + b"\n"


def content_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over the index without itself, the build host, and what is not content."""
    content = {k: v for k, v in document.items() if k not in ("content_digest", "build")}
    content["files"] = {
        name: entry for name, entry in document["files"].items() if not name.startswith(NOT_CONTENT)
    }
    return hashlib.sha256(encode(content)).hexdigest()


def _fault(path: str, why: str) -> BundleError:
    return BundleError(
        "bundle-index",
        "the bundle's index is not valid",
        why="{}: {}".format(path or INDEX, why),
        hint="fetch the bundle again from where it was built",
    )


def _no_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise _fault("", "a key stands twice")
    return dict(pairs)


def _constant(text: str) -> Any:
    raise _fault("", "{} is not a number of JSON".format(text))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _fault("", "{} is too large a number".format(text))
    return number


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, found without recursion."""
    depth = deepest = 0
    quoted = escaped = False
    for byte in data:
        if quoted:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


class _Reader:
    """Typed access to the document; the error names the key that is wrong."""

    def __init__(self, value: Any, path: str) -> None:
        self.value = value
        self.path = path

    def get(self, key: str, *types: type) -> Any:
        if not isinstance(self.value, dict) or key not in self.value:
            raise _fault(self.path, "the key {!r} is missing".format(key))
        value = self.value[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise _fault("{}.{}".format(self.path, key).strip("."), "it has the wrong type")
        return value

    def at(self, key: str) -> "_Reader":
        return _Reader(self.get(key, dict), "{}.{}".format(self.path, key).strip("."))

    def each(self, key: str, read: Callable[["_Reader"], Any]) -> Tuple[Any, ...]:
        path = "{}.{}".format(self.path, key).strip(".")
        return tuple(
            read(_Reader(value, "{}[{}]".format(path, i)))
            for i, value in enumerate(self.get(key, list))
        )

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise _fault(self.path, "it is not a string")
        return self.value


def _tensor(reader: _Reader) -> Tensor:
    shape = tuple(reader.get("shape", list))
    for dim in shape:
        if not (isinstance(dim, str) or (type(dim) is int and dim >= 0)):
            raise _fault(reader.path, "its shape is {!r}".format(shape))
    dtype = reader.get("dtype", str)
    if dtype not in DTYPES:
        raise _fault(reader.path, "its element type is {!r}".format(dtype))
    return Tensor(reader.get("name", str), dtype, shape, reader.get("kind", str))


def _gates(reader: _Reader) -> Dict[str, Dict[str, float]]:
    gates: Dict[str, Dict[str, float]] = {}
    for question in ("quality", "fidelity"):
        bounds = reader.at(question)
        gates[question] = {gate: bounds.get(gate, int, float, bool) for gate in bounds.value}
    return gates


def _device(reader: _Reader) -> Dict[str, Any]:
    for key in reader.value:
        if key == "isa":
            reader.each(key, _Reader.text)
        else:
            reader.get(key, str)
    return dict(reader.value)


def parse(data: bytes) -> Index:
    """Read and check an index. Raises BundleError, naming the key that is wrong."""
    if len(data) > MAX_INDEX_BYTES:
        raise _fault("", "it has {} bytes; at most {} are read".format(len(data), MAX_INDEX_BYTES))
    if _depth(data) > MAX_DEPTH:
        raise _fault("", "it is nested deeper than {} levels".format(MAX_DEPTH))
    try:
        document = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except ValueError as error:
        raise _fault("", "it is not JSON: {}".format(error)) from error
    top = _Reader(document, "")
    version = top.get("format", str)
    if version != FORMAT:
        raise BundleError(
            "bundle-format",
            "the bundle has another format than this loader reads",
            why="the bundle says {!r}, the loader reads {!r}".format(version, FORMAT),
            hint="run the bundle itself: python3 BUNDLE verify",
        )
    files: Dict[str, Tuple[str, int]] = {}
    listed = top.at("files")
    for name in listed.value:
        entry = listed.at(name)
        sha256, size = entry.get("sha256", str), entry.get("bytes", int)
        if not _SHA256.match(sha256) or size < 0:
            raise _fault(entry.path, "its hash or its size is not one")
        files[name] = (sha256, size)
    reference = top.at("reference")
    index = Index(
        name=top.get("name", str),
        target=top.get("target", str),
        device=_device(top.at("device")),
        inputs=top.each("inputs", _tensor),
        outputs=top.each("outputs", _tensor),
        model=top.get("model", str),
        reference=Reference(
            reference.get("samples", int),
            reference.each("inputs", _Reader.text),
            reference.each("original", _Reader.text),
            reference.each("built", _Reader.text),
        ),
        gates=_gates(top.at("gates")),
        quality=top.get("quality", dict),
        build=top.get("build", dict),
        files=files,
        content_digest=top.get("content_digest", str),
        raw=document,
    )
    _consistent(index)
    return index


def _consistent(index: Index) -> None:
    named = (index.model, *index.reference.inputs, *index.reference.original)
    for name in (*named, *index.reference.built):
        if name not in index.files:
            raise _fault("files", "{!r} is used and not listed".format(name))
    counts = (len(index.reference.inputs), len(index.reference.original))
    if counts != (len(index.inputs), len(index.outputs)):
        raise _fault("reference", "it does not have one file per input and output")
    if index.reference.samples < 1:
        raise _fault("reference.samples", "there is nothing to prove the bundle on")
    if len(index.reference.built) not in (0, len(index.outputs)):
        raise _fault("reference.built", "it does not have one file per output")
    if index.content_digest != content_digest(index.raw):
        raise _fault("content_digest", "it is not the digest of this index")


def read_index(archive: Archive) -> Index:
    """The index of an open bundle, and the proof that it lists just what the bundle holds.

    Raises BundleError where names or sizes differ. Contents are hashed by `check_file` as they
    are used, and all of them by `verify`.
    """
    index = parse(archive.read(INDEX))
    held = {name: entry.size for name, entry in archive.entries.items() if name != INDEX}
    listed = {name: size for name, (_, size) in index.files.items()}
    if held != listed:
        odd = sorted(name for name in set(held) | set(listed) if held.get(name) != listed.get(name))
        raise BundleError(
            "bundle-altered",
            "the bundle does not hold what its index lists",
            why="differs: " + ", ".join(odd[:5]),
            hint="do not use it; fetch it again from where it was built",
        )
    return index


def check_file(archive: Archive, index: Index, name: str) -> bytes:
    """The bytes of one file, proved to be those that the index lists."""
    data = archive.read(name)
    _require(name, hashlib.sha256(data).hexdigest(), index)
    return data


def check_all(archive: Archive, index: Index) -> int:
    """Hash every file of the bundle; returns the bytes hashed. Raises BundleError."""
    for name in index.files:
        _require(name, archive.sha256(name), index)
    return sum(size for _, size in index.files.values())


def _require(name: str, found: str, index: Index) -> None:
    listed = index.files[name][0]
    if found != listed:
        raise BundleError(
            "bundle-altered",
            "the bundle was altered after it was built",
            why="{} has SHA-256 {}..., the index lists {}...".format(name, found[:16], listed[:16]),
            hint="do not use it; fetch it again from where it was built",
        )
