"""Sealed choice: the file beside the bundle with the variant and settings that `tune` chose.

`BUNDLE.tuned` is a JSON document: a key that names its bundle, CPU and engines, the choice, the
figures of all candidates, and a hash over these.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, List, Mapping, NamedTuple, Sequence, Union

from ..bundle.engines import Variant, read_settings
from ..bundle.trusted import open_own
from ..errors import DeviceError
from ..strict_json import Reader, encode, parse
from .machine import allowed_cores

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..documents import DeviceFacts, TunedCandidate, TunedDocument, TunedKey

FORMAT = "edgepack-tuned/1"
SUFFIX = ".tuned"
MAX_BYTES = 1 << 16
TUNE = "python3 BUNDLE tune"


class Tuned(NamedTuple):
    """Sealed choice that fits this device.

    Attributes:
        variant: the chosen variant, with the chosen settings.
        document: the key, the choice, and the figures of all candidates.
    """

    variant: Variant
    document: TunedDocument


def tuned_path(bundle: str) -> str:
    """Return the path of a bundle's sealed choice."""
    return bundle + SUFFIX


def list_engines(index: Index) -> List[str]:
    """Return the names of the engines of a bundle, each once."""
    return sorted({variant.engine for variant in index.variants})


def make_key(index: Index, device: DeviceFacts, engines: Sequence[str]) -> TunedKey:
    """Return the key of a choice that is made on this device; a missing engine has no version.

    Args:
        index: of the bundle.
        device: device info, from `device_info.device_info`.
        engines: names of the engines whose versions are read, which imports them.
    """
    versions = {name: str(device[name] or "") for name in engines}  # type: ignore[literal-required]
    return {
        "bundle": index.content_digest,
        "cpu": device["cpu"],
        "cores": len(allowed_cores()),
        "engines": versions,
    }


def find_tuned(
    bundle: str, index: Index, device: DeviceFacts, *, every_engine: bool = False
) -> Union[Tuned, DeviceError, None]:
    """Return the sealed choice of a bundle, or the reason not to use it; None if there is none.

    Args:
        bundle: its path.
        index: of it.
        device: device info, from `device_info.device_info`.
        every_engine: compare the versions of all engines, not only that of the chosen one.
    """
    path = tuned_path(bundle)
    if not os.path.lexists(path):
        return None
    try:
        return _read(path, index, device, every_engine)
    except DeviceError as error:
        return error


def prefer_tuned(bundle: str, index: Index, device: DeviceFacts) -> Index:
    """Return an index in which the sealed choice comes first; unchanged if there is none that fits.

    `info` shows the reason not to use a choice.
    """
    tuned = find_tuned(bundle, index, device)
    if not isinstance(tuned, Tuned):
        return index
    others = [variant for variant in index.variants if variant.name != tuned.variant.name]
    return replace(index, variants=(tuned.variant, *others))


def describe_tuned(bundle: str, index: Index, device: DeviceFacts) -> List[str]:
    """Return the section of `info` on the sealed choice; empty if there is none."""
    tuned = find_tuned(bundle, index, device, every_engine=True)
    if tuned is None:
        return []
    title = "tuned on this device: time of one inference, speed-up over what runs untuned"
    if isinstance(tuned, Tuned):
        rows = describe_candidates(tuned.document["candidates"])
    else:
        title = "tuned: not used"
        rows = [tuned.what, *tuned.why.splitlines(), tuned.hint]
    return ["", title, *[f"  {row}" for row in rows]]


def _read(path: str, index: Index, device: DeviceFacts, every_engine: bool) -> Tuned:
    try:
        with open(path, "rb", opener=open_trusted) as file:
            top = parse(file.read(MAX_BYTES + 1), _fault, MAX_BYTES)
    except OSError as error:
        raise _fault("", error.strerror or str(error)) from error
    if top.get("format", str) != FORMAT:
        raise _fault("format", f"it is {top.value['format']!r}")
    digest = top.get("sha256", str)
    del top.value["sha256"]
    if digest != _hash(top.value):
        raise _fault("sha256", "it is not the hash of the rest")
    key = _key(top.at("key"))
    # The engines of another bundle may be unknown here.
    if key["bundle"] != index.content_digest:
        raise _other(f"bundle: it was tuned for {key['bundle']}; this is {index.content_digest}")
    choice = top.at("choice")
    variant = _variant(choice, index)
    engines = list_engines(index) if every_engine else [variant.engine]
    _require_match(key, make_key(index, device, engines))
    return Tuned(
        variant,
        {
            "key": key,
            "choice": {
                "variant": variant.name,
                "engine": variant.engine,
                "settings": variant.settings.to_json(),
            },
            "candidates": list(top.each("candidates", _candidate)),
        },
    )


def _key(reader: Reader) -> TunedKey:
    engines = reader.at("engines")
    return {
        "bundle": reader.get("bundle", str),
        "cpu": reader.get("cpu", str),
        "cores": reader.get("cores", int),
        "engines": {name: engines.get(name, str) for name in engines.value},
    }


def _variant(choice: Reader, index: Index) -> Variant:
    name = choice.get("variant", str)
    for variant in index.variants:
        if variant.name == name:
            settings = read_settings(choice.at("settings"), variant.engine)
            return variant._replace(settings=settings)
    raise choice.fault(f"the bundle has no variant {name!r}")


def _candidate(reader: Reader) -> TunedCandidate:
    return {
        "label": reader.get("label", str),
        "p50": reader.get("p50", float, type(None)),
        "ratio": reader.get("ratio", float, type(None)),
        "result": reader.get("result", str),
    }


def _require_match(key: TunedKey, present: TunedKey) -> None:
    facts = [("CPU", key["cpu"], present["cpu"])]
    facts.append(("cores", str(key["cores"]), str(present["cores"])))
    for engine, version in present["engines"].items():
        facts.append((engine, key["engines"].get(engine, ""), version))
    differences = []
    for name, recorded, value in facts:
        if recorded != value:
            differences.append(
                f"{name}: it was tuned for {recorded or 'none'}; this is {value or 'none'}"
            )
    if differences:
        raise _other("\n".join(differences))


def describe_candidates(candidates: Sequence[TunedCandidate]) -> List[str]:
    """Return a row on each candidate: `cpu, 1 thread  4.10 ms, 0.62x: dropped in round 1`."""
    width = max(len(candidate["label"]) for candidate in candidates)
    rows = []
    for candidate in candidates:
        figures = ""
        if candidate["p50"] is not None:
            figures = f"{candidate['p50']:.3f} ms"
        if candidate["ratio"] is not None:
            figures += f", {candidate['ratio']:.2f}x"
        rows.append(f"{candidate['label']:<{width}}  {figures or '-':<18} {candidate['result']}")
    return rows


def write_tuned(file: BinaryIO, document: TunedDocument, details: Mapping[str, object]) -> None:
    """Write a sealed choice into an open, empty file.

    Args:
        file: binary, at its beginning.
        document: the key, the choice, and the figures of all candidates.
        details: further facts for people; the loader does not read them.
    """
    content = {"format": FORMAT, **document, "details": dict(details)}
    file.write(encode({**content, "sha256": _hash(content)}))


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(encode(content)).hexdigest()


def _other(why: str) -> DeviceError:
    return DeviceError(
        "tuned-other",
        "the choice sealed beside the bundle is for another bundle or device",
        why=why,
        hint=TUNE,
    )


def _fault(path: str, why: str) -> DeviceError:
    return DeviceError(
        "tuned-seal",
        "the choice sealed beside the bundle is not intact",
        why=": ".join(filter(None, (path, why))),
        hint=TUNE,
    )


def open_trusted(path: str, flags: int) -> int:
    """Open a sealed choice if only this user and root could have written it; else DeviceError."""
    return open_own(path, flags, _untrusted)


def _untrusted(why: str) -> DeviceError:
    return DeviceError(
        "tuned-untrusted",
        "the choice sealed beside the bundle is not trusted and was not read",
        why=why,
        hint=TUNE,
    )
