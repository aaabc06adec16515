"""`info`: show the bundle's contents, its requirements, and the variant that would run here."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from ..bundle.archive import Archive
from ..bundle.checksum import require_checksum
from ..bundle.index import Index, read_index
from ..device import machine
from ..device.device_info import DeviceInfo, find_sealed
from ..device.variants import choose, format_skip_reason
from ..errors import DeviceError
from .setup import describe_wheels

# Packages that the loader may need. `info` lists the missing ones, so it must run without any.
PACKAGES = ("numpy", "onnxruntime")
UNPROVEN = "NOT PROVEN: calibrated on random numbers; accuracy on real inputs is unknown"


def info(bundle: str) -> Tuple[List[str], Dict[str, Any]]:
    """Describe a bundle: lines for people, and a document for machines.

    The document is the index, with the "sha256" of the file and "variant" as in the verdict. If the
    device is below the bundle's minimum requirements, "variant" has an "error" in addition.
    """
    with Archive(bundle) as archive:
        index, digest = read_index(archive), require_checksum(archive)
    device = DeviceInfo(index)
    lines = [
        f"{index.name} for {index.target}",
        f"content {index.content_digest}",
        f"sha256  {digest}",
        "needs   " + ", ".join(f"{k} {v}" for k, v in sorted(index.device.items()) if v),
        *(() if index.proven else (UNPROVEN,)),
        *(f"input   {tensor}" for tensor in index.inputs),
        *(f"output  {tensor} ({tensor.kind})" for tensor in index.outputs),
        f"model   {index.files[index.model][1]:,} bytes",
        *(f"wheels  {wheels}: python3 BUNDLE setup DIR" for wheels in describe_wheels(index)),
        f"proof   {index.reference.samples} reference samples; gates "
        + "; ".join(f"{q}: {dict(g)}" for q, g in index.gates.items()),
    ]
    # `device` probes on access, so choose the variant first and list the collected facts after.
    variant_lines, variant = _variants(bundle, index, device)
    facts = {**machine.describe(), **{package: _installed_version(package) for package in PACKAGES}}
    facts.update({key: value for key, value in device.items() if key not in facts and value})
    shown = (f"{k} {v}" for k, v in facts.items() if k != "isa" and not k.endswith("_why"))
    lines += [*variant_lines, "here    " + ", ".join(shown)]
    if device["isa"] is None:
        lines.append(
            "isa     unknown on this system: variants above the minimum requirements are skipped"
        )
    return lines, {**index.raw, "sha256": digest, "variant": variant}


def _variants(bundle: str, index: Index, device: DeviceInfo) -> Tuple[List[str], Dict[str, Any]]:
    try:
        machine.require(index.device, device)
    except DeviceError as error:
        document: Dict[str, Any] = {
            "name": None,
            "engine": None,
            "sealed": False,
            "fallback": False,
        }
        document.update(passed_over=[], error=error.to_json())
        return [f"variant none runs here: {error.what}: {error.why}"], document
    choice = choose(index, device, find_sealed(bundle, index))
    document = choice.to_json()
    reasons = {
        passed["name"]: "skipped: " + format_skip_reason(passed)
        for passed in document["passed_over"]
    }
    if choice.variant is not None:
        reasons[choice.variant.name] = "runs here"
        if choice.sealed:
            reasons[choice.variant.name] += ", with the engine finished on this device"
    lines = []
    for variant in index.variants:
        needs = ", ".join(f"{k} {v}" for k, v in sorted(variant.needs.items()))
        lines.append(", needs ".join(filter(None, (f"variant {variant.name}", needs))))
        lines.append("        " + reasons.get(variant.name, "not needed: a better one fits"))
    return lines, document


def _installed_version(package: str) -> str:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return "missing"
