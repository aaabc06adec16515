"""`bundle.json`: the bundle's contents, its requirements, and the hash of every other file."""

from __future__ import annotations

import hashlib
import re
from binascii import crc32
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple

from .. import strict_json
from ..errors import BundleError
from ..parity.parts import SNR_LIMIT, Part
from ..strict_json import Reader, encode
from ..tensor import KINDS, Tensor
from .archive import INDEX, MAX_INDEX_BYTES, Archive
from .engines import EngineOptions, Variant, read_options, read_variants
from .evidence import check_quality, read_parts

if TYPE_CHECKING:
    from ..documents import DeviceNeeds, IndexDocument, RecordedQuality
    from .raw import RawReference

FORMAT = "edgepack/3"
# Of bundles without a preprocessing and class names.
OLDER = "edgepack/2"
# Entries that may differ between two builds from the same inputs: the report contains times, and
# vendors do not build engines deterministically. The SHA-256 of the whole file covers them; see
# `checksum`.
NOT_CONTENT = ("report/", "engine/")
# Limit for the other size of an axis, against absurd allocations; builds write about twice the size
# of a reference sample.
MAX_SIZE = 1 << 24
DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)

# Gates of each question, and below the range of each bound.
GATES = {
    "quality": ("snr_db", "cosine", "agreement", "metric_ratio", "max_drop"),
    "fidelity": ("bit_exact", "snr_db"),
    "placement": ("min_share",),
}
_RANGES = {
    "snr_db": (-SNR_LIMIT, SNR_LIMIT),
    "cosine": (-1, 1),
    "agreement": (0, 1),
    "metric_ratio": (0, 1),
    "max_drop": (0, 100),
    "min_share": (0, 1),
}

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Reference:
    """Samples that the bundle is verified on.

    Attributes:
        samples: their number.
        inputs: per input, the .npy file; its axis 0 counts the samples, each of them a whole feed.
        original: per output, the answers of the original fp32 model.
        built: per output, the answers of this artefact on the build host; empty in a draft.
        raw: raw samples, such as pictures, in place of the arrays of `inputs`; None for arrays.
    """

    samples: int
    inputs: Tuple[str, ...]
    original: Tuple[str, ...]
    built: Tuple[str, ...]
    raw: Optional[RawReference] = None


@dataclass(frozen=True)
class OtherSize:
    """Answers to the first reference sample with one dynamic axis brought to another size.

    Attributes:
        axis: its name.
        size: other than in the reference samples.
        original: per output, the .npy file of the original's answer, along an axis 0 of size 1.
        built: per output, the answer of this artefact on the build host; empty in a draft.
    """

    axis: str
    size: int
    original: Tuple[str, ...]
    built: Tuple[str, ...]

    @property
    def label(self) -> str:
        """Axis and size in words, `batch = 2`."""
        return f"{self.axis} = {self.size}"


@dataclass(frozen=True)
class Description:
    """Facts about a bundle that its writer states and every reader finds again, unchanged.

    Attributes:
        name: the model's name.
        target: the target profile's name.
        device: requirements on every device: arch, isa, python; a Jetson's jetpack.
        inputs: of the model.
        outputs: of the model.
        variants: the ways to run it, best first.
        engine_options: options for building an engine on the device.
        gates: question ("quality", "fidelity") -> gate -> bound.
        parts: per output, the parts whose errors are measured separately; integers have none.
        quality: the build's metrics on the whole evaluation set, and on the reference samples;
            empty in a draft.
        build: the host that computed the answers of this artefact: arch, cpu, isa, engine version;
            empty in a draft.
    """

    name: str
    target: str
    device: DeviceNeeds
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    variants: Sequence[Variant]
    engine_options: EngineOptions
    gates: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Sequence[Part]]
    quality: RecordedQuality
    build: Mapping[str, object]


@dataclass(frozen=True)
class Index(Description):
    """Validated `bundle.json`: the description, and the entries that belong to it.

    Attributes:
        model: name of the ONNX entry, from which every engine runs or is built.
        reference: the samples that the bundle is verified on.
        sizes: one other size of every dynamic axis, the batch's among them.
        files: name -> (SHA-256, bytes) of every entry but `bundle.json`.
        content_digest: SHA-256 of the content that two builds from the same inputs share.
        raw: the document as it was read.
        preprocessing: document of the conversion of raw data to the inputs; None for arrays alone.
        classes: entry with the names of the classes; None if they have none.
        postprocessing: document of the user's function that decodes the outputs; None for none.
    """

    model: str
    reference: Reference
    sizes: Tuple[OtherSize, ...]
    files: Mapping[str, Tuple[str, int]]
    content_digest: str
    raw: IndexDocument
    preprocessing: Optional[Reader] = None
    classes: Optional[str] = None
    postprocessing: Optional[Reader] = None

    @property
    def on_gpu(self) -> bool:
        """True for a bundle for GPUs, even if a variant on the CPU is its fallback."""
        return any(variant.on_gpu for variant in self.variants)

    @property
    def proven(self) -> bool:
        """False if the build calibrated on random numbers in place of samples."""
        # The loader does not check the provenance, so it may be of any type.
        provenance: object = self.raw.get("provenance")
        return not isinstance(provenance, dict) or provenance.get("proven") is not False


def content_digest(index: IndexDocument) -> str:
    """Return the SHA-256 over the index without this digest, `build` and NOT_CONTENT."""
    # `build` names the host, on which the content must not depend.
    content = dict(index)
    content.pop("content_digest", None)
    content.pop("build", None)
    files = dict(index["files"])
    for name in index["files"]:
        if name.startswith(NOT_CONTENT):
            del files[name]
    content["files"] = files
    return hashlib.sha256(encode(content)).hexdigest()


def _fault(path: str, why: str) -> BundleError:
    return BundleError(
        "bundle-index",
        "the bundle's index is not valid",
        why=f"{path or INDEX}: {why}",
        hint="copy the bundle again from the build host",
    )


def _tensor(reader: Reader) -> Tensor:
    shape = tuple(reader.get("shape", list))
    for dim in shape:
        if not (isinstance(dim, str) or (type(dim) is int and dim >= 0)):
            raise reader.fault(f"its shape is {shape!r}")
    dtype = reader.get("dtype", str)
    if dtype not in DTYPES:
        raise reader.fault(f"its element type is {dtype!r}")
    kind, axis = reader.get("kind", str), reader.value.get("axis", -1)
    if kind not in KINDS:
        raise reader.fault(f"its kind is {kind!r}")
    # A bool is an int to isinstance, but no axis.
    if type(axis) is not int or (axis != -1 and not 0 <= axis < len(shape)):
        raise reader.fault(f"its class axis is {axis!r}")
    return Tensor(reader.get("name", str), dtype, shape, kind, axis)


def _other_size(reader: Reader) -> OtherSize:
    size = reader.get("size", int)
    if not 0 < size <= MAX_SIZE:
        raise reader.fault(f"its size is {size}")
    axis = reader.get("axis", str)
    original = reader.each("original", Reader.text)
    return OtherSize(axis, size, original, reader.each("built", Reader.text))


def _gates(reader: Reader) -> Dict[str, Dict[str, float]]:
    gates: Dict[str, Dict[str, float]] = {}
    for question, names in GATES.items():
        # Bundles for CPUs do not have it.
        if question == "placement" and question not in reader.value:
            continue
        bounds = reader.at(question)
        gates[question] = {}
        for gate in bounds.value:
            gates[question][gate] = _bound(bounds, gate, names)
    return gates


def _bound(bounds: Reader, gate: str, names: Tuple[str, ...]) -> float:
    if gate not in names:
        raise bounds.fault(f"this loader has no gate {gate!r}")
    if gate == "bit_exact":
        exact: float = bounds.get(gate, bool)
        return exact
    bound: float = bounds.get(gate, int, float)
    least, most = _RANGES[gate]
    if not least <= bound <= most:
        raise bounds.fault(f"the gate {gate} cannot be {bound}")
    return bound


def _reference(reader: Reader, inputs: Sequence[Tensor]) -> Reference:
    raw, samples = None, reader.get("samples", int)
    if samples < 1:
        raise reader.fault("there are no reference samples")
    if "raw" in reader.value:
        from .raw import read_raw_reference

        raw = read_raw_reference(reader.at("raw"), len(inputs), samples)
    return Reference(
        samples,
        reader.each("inputs", Reader.text),
        reader.each("original", Reader.text),
        reader.each("built", Reader.text),
        raw,
    )


def _device(reader: Reader) -> DeviceNeeds:
    for key in reader.value:
        if key == "isa":
            reader.each(key, Reader.text)
        else:
            reader.get(key, str)
    needs: DeviceNeeds = reader.value
    return needs


def parse(data: bytes) -> Index:
    """Read and check an index. Raises BundleError that names the offending key."""
    top = strict_json.parse(data, _fault, MAX_INDEX_BYTES)
    version = top.get("format", str)
    if version not in (FORMAT, OLDER):
        raise BundleError(
            "bundle-format",
            "this loader does not read the bundle's format",
            why=f"the bundle has {version!r}, the loader reads {OLDER!r} and {FORMAT!r}",
            hint="run the bundle itself: python3 BUNDLE verify",
        )
    # "files": {"model/model.onnx": {"sha256": "9ab1...", "bytes": 3505152}, ...}
    files: Dict[str, Tuple[str, int]] = {}
    listed = top.at("files")
    for name in listed.value:
        entry = listed.at(name)
        sha256, size = entry.get("sha256", str), entry.get("bytes", int)
        if not _SHA256.match(sha256) or size < 0:
            raise entry.fault("its hash or its size is not valid")
        files[name] = (sha256, size)
    inputs = top.each("inputs", _tensor)
    outputs = top.each("outputs", _tensor)
    parts = read_parts(top, outputs)
    index = Index(
        name=top.get("name", str),
        target=top.get("target", str),
        device=_device(top.at("device")),
        inputs=inputs,
        outputs=outputs,
        model=top.get("model", str),
        variants=read_variants(top, files),
        engine_options=read_options(top.at("engine_options"), inputs),
        reference=_reference(top.at("reference"), inputs),
        sizes=top.each("sizes", _other_size),
        gates=_gates(top.at("gates")),
        parts=parts,
        quality=check_quality(top, outputs, parts),
        build=top.get("build", dict),
        files=files,
        content_digest=top.get("content_digest", str),
        raw=top.value,
        # Its kind reads the rest, once it is needed.
        preprocessing=top.at("preprocessing") if top.value.get("preprocessing") else None,
        classes=_optional_text(top, "classes"),
        postprocessing=top.at("postprocessing") if top.value.get("postprocessing") else None,
    )
    # `commands.verify` reads the metric from `raw`, so only its type is checked here.
    _optional_text(top, "metric")
    _consistent(index)
    return index


def _optional_text(reader: Reader, key: str) -> Optional[str]:
    if key in reader.value:
        return reader.get(key, str, type(None))
    return None


def _consistent(index: Index) -> None:
    names = [index.model, *index.reference.inputs, *index.reference.original]
    for size in index.sizes:
        names += [*size.original, *size.built]
    if index.classes is not None:
        names.append(index.classes)
    _require_listed(index, (*names, *index.reference.built))
    counts = (len(index.reference.inputs), len(index.reference.original))
    raw = index.reference.raw
    if raw is not None:
        if index.preprocessing is None:
            raise _fault("reference.raw", "there is no preprocessing")
        _require_listed(index, (*raw.files, *raw.probes))
    # Raw samples replace the arrays of the inputs, but for those that the user's code prepares.
    stored = raw is None or _is_code(index)
    if counts != (len(index.inputs) if stored else 0, len(index.outputs)):
        raise _fault("reference", "it does not have one file per input and output")
    # A draft has no answers of the build host yet.
    if len(index.reference.built) not in (0, len(index.outputs)):
        raise _fault("reference.built", "it does not have one file per output")
    # Fixed dimensions are in the set too, but no name equals a number.
    axes = set(chain.from_iterable(tensor.shape for tensor in index.inputs))
    for size in index.sizes:
        if size.axis not in axes:
            raise _fault("sizes", f"no input has an axis {size.axis!r}")
        if len(size.original) != len(index.outputs):
            raise _fault("sizes", f"{size.label} does not have one file per output")
        if len(size.built) != len(index.reference.built):
            raise _fault("sizes", f"{size.label} does not have one answer per output")
    _require_distinct("inputs", index.inputs)
    _require_distinct("outputs", index.outputs)
    if index.content_digest != content_digest(index.raw):
        raise _fault("content_digest", "it is not the digest of this index")


def _require_listed(index: Index, names: Sequence[str]) -> None:
    for name in names:
        if name not in index.files:
            raise _fault("files", f"{name!r} is used but not listed")


def _is_code(index: Index) -> bool:
    return index.preprocessing is not None and index.preprocessing.value.get("kind") == "code"


def _require_distinct(key: str, tensors: Sequence[Tensor]) -> None:
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise _fault(key, "two of them have the same name")


def read_index(archive: Archive) -> Index:
    """Return the index of an open bundle after comparing it with the bundle's entries.

    Raises BundleError if names or sizes differ. Contents are hashed by `check_file` when they are
    used, and all of them by `verify`.
    """
    # The index holds the hash of every entry but its own, so its bytes rely on the CRC.
    data = archive.read(INDEX)
    archive.require_crc(INDEX, crc32(data))
    index = parse(data)
    different = _find_different_entries(archive, index)
    if different:
        raise BundleError(
            "bundle-altered",
            "the bundle's entries are not those that its index lists",
            why="different: " + ", ".join(different[:5]),
            hint="do not use it; copy it again from the build host",
        )
    return index


def _find_different_entries(archive: Archive, index: Index) -> List[str]:
    """Return the names of the entries that the index does not list with their size, sorted.

    An archive with a.npy (8 bytes) and b.npy (8) and an index with a.npy (8), b.npy (9) and c.npy
    give [b.npy, c.npy].
    """
    sizes = {name: entry.size for name, entry in archive.entries.items()}
    # The index lists every file but itself.
    del sizes[INDEX]
    listed = {name: size for name, (_, size) in index.files.items()}
    # A pair of name and size that is on one side only.
    different = set(sizes.items()) ^ set(listed.items())
    return sorted({name for name, _ in different})


def check_file(archive: Archive, index: Index, name: str) -> bytes:
    """Return the bytes of an entry after comparing their hash with the index."""
    data = archive.read(name)
    _require(name, hashlib.sha256(data).hexdigest(), index)
    return data


def check_all(archive: Archive, index: Index) -> int:
    """Check the hash of every file of the bundle and return the number of bytes.

    Together with the archive's canonical form this covers each byte of the bundle. Raises
    BundleError if a hash differs.
    """
    for name in index.files:
        digest, crc = archive.hashes(name)
        _require(name, digest, index)
        archive.require_crc(name, crc)
    return sum(size for _, size in index.files.values())


def _require(name: str, digest: str, index: Index) -> None:
    listed = index.files[name][0]
    if digest != listed:
        raise BundleError(
            "bundle-altered",
            "the bundle was altered after it was built",
            why=f"{name} has SHA-256 {digest[:16]}..., the index lists {listed[:16]}...",
            hint="do not use it; copy it again from the build host",
        )


def read_names(archive: Archive, index: Index, name: str) -> Tuple[str, ...]:
    """Return the names of the classes. Raises BundleError if their entry is not a list of texts."""

    def fault(path: str, why: str) -> BundleError:
        return _fault(f"{name}: {path}", why)

    document = strict_json.parse(check_file(archive, index, name), fault, MAX_INDEX_BYTES)
    return document.each("names", Reader.text)
