"""`info`: show the bundle's contents, its requirements, and the variant that would run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Mapping, Tuple

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.engines import ENGINES, OPENVINO
from ..bundle.index import Index, read_index
from ..device import machine
from ..device.device_info import device_info, find_sealed
from ..device.variants import choose
from ..errors import DeviceError
from ..parity.gates import describe_bound
from ..tensor import Tensor
from .setup import describe_wheels

if TYPE_CHECKING:
    from ..documents import DeviceFacts, InfoDocument, VariantDocument

# Kind of preprocessing -> the package that decodes, and its module.
DECODERS = {
    "picture": ("pillow", "PIL"),
    "text": ("tokenizers", "tokenizers"),
    "audio": ("soundfile", "soundfile"),
}
# Columns of the labels within a section.
_WIDTH = 12
# Names of requirements and of facts about the device, for people; others are shown as they are.
_LABELS = {
    "compute_capability": "compute capability",
    "cuda_driver": "CUDA driver",
    "gpu": "GPU",
    "gpu_memory_bytes": "GPU memory",
    "l4t": "L4T",
    "os": "system",
    "tensorrt": "TensorRT",
}
# Requirements whose value is a version or a specifier.
_VERSIONS = ("python", "compute_capability", *ENGINES)
# Samples of each kind of preprocessing, settings that pixels are measured in, those whose values
# need no name, and those that other rows show.
_KINDS = {"picture": "pictures", "text": "texts", "audio": "recordings", "code": "samples"}
_SIZES = ("resize", "crop", "letterbox")
_BARE = ("interpolation", "colour", "layout")
# Order of the settings of pictures; any others follow.
_ORDER = (*_SIZES, "pad", "antialias", *_BARE, "scale", "mean", "std")
_ELSEWHERE = ("kind", "input", "file", "function", "tokenizer", "takes_text")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def info(bundle: str) -> Tuple[List[str], InfoDocument]:
    """Describe a bundle: lines for people, and a document for machines.

    The document is the index, with the "sha256" of the file and "variant" as in the verdict. If the
    device is below the bundle's minimum requirements, "variant" has an "error" in addition.
    """
    with Archive(bundle) as archive:
        index, digest = read_index(archive), require_checksum(archive)
    device = device_info(index)
    # `device` probes on access, so choose the variant first and list the collected facts after.
    remarks, variant = _choose_variant(bundle, index, device)
    lines = [
        *describe_contents(index, digest),
        "",
        *_describe_gates(index),
        "",
        *describe_variants(index, remarks),
    ]
    if not index.on_gpu:
        from ..device.tuned import describe_tuned

        lines += describe_tuned(bundle, index, device)
    lines += ["", "this device", *_describe_device(device, index)]
    if "error" in variant:
        error = variant["error"]
        lines.append(f"no variant runs here: {error['what']}: {error['why']}")
    return lines, {**index.raw, "sha256": digest, "variant": variant}


def describe_contents(index: Index, digest: str) -> List[str]:
    """Return the text on a bundle's files, tensors and requirements, in sections of aligned rows.

    Args:
        index: of the bundle.
        digest: SHA-256 of its file.
    """
    lines = [
        f"{index.name} for {index.target}",
        "",
        "bundle",
        _row("content", index.content_digest),
        _row("sha256", digest),
        _row("model", format_bytes(index.files[index.model][1])),
        *_describe_verdict(index),
    ]
    for wheels in describe_wheels(index):
        lines.append(_row("wheels", f"{wheels}: python3 BUNDLE setup DIR"))
    lines += ["", "inputs and outputs"]
    for tensor in index.inputs:
        lines.append(_row("input", _format_tensor(tensor)))
    for tensor in index.outputs:
        lines.append(_row("output", f"{_format_tensor(tensor)}, {tensor.kind}"))
    lines += _describe_preprocessing(index)
    # An empty list requires nothing, so it is left out.
    lines += ["", "requirements"]
    for name, value in sorted(index.device.items()):
        if value:
            lines.append(_row(name, _format_value(name, value)))
    return lines


def _describe_verdict(index: Index) -> List[str]:
    """Return a row for the build's verdict, and one for each reason below it."""
    # Absent in a draft; the loader does not check this entry, so it may be of any type.
    verdict, reasons = index.build.get("verdict"), index.build.get("reasons")
    if verdict is None:
        return []
    lines = [_row("verdict", f"{verdict} when it was built")]
    for reason in reasons if isinstance(reasons, list) else ():
        lines.append(_row("", str(reason)))
    return lines


def _describe_preprocessing(index: Index) -> List[str]:
    """Return rows on the raw data that the bundle takes, and the settings of its conversion."""
    lines = []
    if index.preprocessing is not None:
        lines = [_row("takes", describe_preprocessing(index.preprocessing.value))]
    if index.classes is not None:
        lines.append(_row("classes", f"named in {index.classes}"))
    for label, document in (("prepared", index.preprocessing), ("decoded", index.postprocessing)):
        if document is not None and "function" in document.value:
            lines.append(_row(label, _describe_code(index, document.value)))
    return lines


def describe_preprocessing(document: Mapping[str, object]) -> str:
    """Return a preprocessing in words.

    `pictures: resize 256, crop 224, bilinear, rgb, nchw, scale 1/255, mean 0.485 0.456 0.406, ...`.
    """
    # Settings that change nothing are left out; nested ones are in `info --json`.
    usual: Dict[str, object] = {"antialias": True, "corner": "even", "dtype": "float32"}
    if document.get("letterbox") is None:
        usual["pad"] = document.get("pad")
    settings = []
    for name in [*_ORDER, *sorted(set(document) - set(_ORDER))]:
        value = document.get(name)
        values = value if isinstance(value, list) else [value]
        flat = bool(values) and all(isinstance(entry, (str, int, float)) for entry in values)
        if not flat or name in _ELSEWHERE or usual.get(name) == value:
            continue
        text = (" x " if name in _SIZES else " ").join(map(_format_setting, values))
        settings.append(text if name in _BARE else f"{name.replace('_', ' ')} {text}")
    kind = str(document.get("kind"))
    return f"{_KINDS.get(kind, kind)}: {', '.join(settings)}".rstrip(": ")


def _format_setting(value: object) -> str:
    """Format a setting: 0.00392157 as 1/255, other floats with six digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return "1/255" if value == 1 / 255 else f"{value:g}"


def _describe_code(index: Index, document: Mapping[str, object]) -> str:
    """Return the user's function with the hash of its file, in words."""
    file = str(document.get("file"))
    digest, size = index.files.get(file, ("", 0))
    return f"by code of the user's: {document['function']} in {file}, {size} bytes, {digest[:16]}"


def _describe_gates(index: Index) -> List[str]:
    """Return the section on the gates, one in a row."""
    lines = ["gates", _row("samples", f"{index.reference.samples} reference samples")]
    for question, bounds in index.gates.items():
        label = question
        for gate, bound in sorted(bounds.items()):
            lines.append(_row(label, describe_bound(gate, bound)))
            # Further gates of the same question have no label.
            label = ""
    return lines


def _format_tensor(tensor: Tensor) -> str:
    """Format name, element type and shape: `image: float32 (batch, 3, 224, 224)`."""
    return f"{tensor.name}: {tensor.dtype} ({', '.join(map(str, tensor.shape))})"


def _row(label: str, value: str) -> str:
    return f"  {label:<{_WIDTH}} {value}".rstrip()


def _format_value(name: str, value: object) -> str:
    """Format a requirement or a fact: a Python of "3.8" is `3.8 or newer`."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    # A bare version is the minimum; a specifier such as ">=10.3,<11" speaks for itself.
    if name in _VERSIONS and str(value)[:1].isdigit():
        return f"{value} or newer"
    return str(value)


def _choose_variant(
    bundle: str, index: Index, device: DeviceFacts
) -> Tuple[Dict[str, List[str]], VariantDocument]:
    """Return remarks on each variant that was considered, and the document of the choice."""
    try:
        machine.require(index.device, device)
    except DeviceError as error:
        return {}, {
            "name": None,
            "engine": None,
            "sealed": False,
            "fallback": False,
            "passed_over": [],
            "error": error.to_json(),
        }
    if not index.on_gpu:
        from ..device.tuned import prefer_tuned

        index = prefer_tuned(bundle, index, device)
    choice = choose(index, device, find_sealed(bundle, index))
    document = choice.to_json()
    remarks = {variant.name: ["not needed: a better one fits"] for variant in index.variants}
    for passed in document["passed_over"]:
        reason = f"skipped: {passed['what']}: {passed['why']}"
        remarks[passed["name"]] = [" ".join(reason.split()), *passed["hint"].splitlines()]
    if choice.variant is not None:
        remark = "runs here"
        if choice.sealed:
            remark += ", with the engine finished on this device"
        remarks[choice.variant.name] = [remark]
    return remarks, document


def describe_variants(index: Index, remarks: Mapping[str, List[str]]) -> List[str]:
    """Return the section on the variants: requirements of each, and remarks in rows below.

    Args:
        index: of the bundle.
        remarks: by the name of the variant.
    """
    lines = ["variants, best first"]
    for variant in index.variants:
        needs = []
        for name, value in sorted(variant.needs.items()):
            if name == "engine_version":
                name = variant.engine
            needs.append(f"{_LABELS.get(name, name)} {_format_value(name, value)}")
        rows = list(remarks.get(variant.name, ()))
        settings = variant.settings.to_json()
        if settings:
            texts = [f"{name} {_format_setting(value)}" for name, value in settings.items()]
            rows.insert(0, "runs with " + ", ".join(texts))
        for gate, bound in sorted(variant.fidelity.items()):
            rows.insert(0, f"fidelity: {describe_bound(gate, bound)}")
        if needs:
            rows.insert(0, "needs " + ", ".join(needs))
        # The first row has the name, even if nothing is to be said.
        lines.append(_row(variant.name, "".join(rows[:1])))
        lines += [_row("", row) for row in rows[1:]]
    return lines


def _describe_device(device: DeviceFacts, index: Index) -> List[str]:
    """Return the facts about this device: of the machine, of the packages, and others as probed."""
    # Only what the choice of the variant has probed is in `device`: no GPU for a CPU's bundle.
    facts: Dict[str, object] = {**machine.describe()}
    # The loader may need these; `info` lists the missing ones, so it must run without any. Engines
    # are not imported as such, since they report to their vendors.
    facts["numpy"] = _installed_version("numpy")
    facts["onnxruntime"] = device["onnxruntime"] or "missing"
    if any(variant.engine == OPENVINO for variant in index.variants):
        facts["openvino"] = device["openvino"] or "missing"
    if index.preprocessing is not None:
        # A kind without an entry needs numpy alone.
        package, module = DECODERS.get(str(index.preprocessing.value.get("kind")), ("", ""))
        if module:
            facts[package] = _installed_version(module)
            if facts[package] == "missing":
                facts[package] = f"missing: python3 -m pip install {package}"
    for name, value in device.items():
        if value and not name.endswith("_why"):
            facts.setdefault(name, value)
    # Long lists that say nothing about the choice; the requirements name the relevant ones.
    isa = facts.pop("isa")
    facts.pop("onnxruntime_providers", None)
    lines = []
    for name, value in facts.items():
        if name == "gpu_memory_bytes" and isinstance(value, int):
            value = format_bytes(value)
        lines.append(_row(_LABELS.get(name, name), str(value)))
    if isa is None:
        why = "unknown on this system: variants above the minimum requirements are skipped"
        lines.append(_row("isa", why))
    return lines


def format_bytes(count: int) -> str:
    """Format bytes in decimal units: 18,550,000 bytes are `18.55 MB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = float(count), 0
    # From 999.995 on two decimals would print 1000.00.
    while value >= 999.995 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.2f} {_UNITS[unit]}"


def _installed_version(package: str) -> str:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return "missing"
