"""Sealed engine: the file beside the bundle that holds the engine built by `finish`.

`BUNDLE.engine` is a zip in the bundle's canonical form: the engine, the timing cache for the next
build, and a key that names the engine's bundle, GPU and TensorRT, with the hash of both files. A
TensorRT engine is native code, so it is trusted like a program: a file that another user could have
created or changed is not opened.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO, Dict, List, Mapping, Optional, Tuple

from ..errors import BundleError, DeviceError
from ..strict_json import Reader, encode, parse
from .archive import Archive
from .engines import FINISH, Variant
from .index import Index
from .trusted import open_own

if TYPE_CHECKING:
    from ..documents import DeviceFacts, FileEntry

FORMAT = "edgepack-engine/1"
SUFFIX = ".engine"
KEY, PLAN, TIMING = "key.json", "engine.plan", "timing.cache"
MAX_KEY_BYTES = 1 << 16
# The oldest time that a zip can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Key:
    """Bundle, GPU and TensorRT that an engine was built for; all must match the device exactly.

    Attributes:
        bundle: the content digest of the bundle.
        variant: the name of the finished variant.
        gpu: the GPU's name.
        compute_capability: of the GPU.
        multiprocessors: their number, which differs between GPUs of the same name, and between
            the partitions of one GPU.
        board: of a Jetson, since a whole family shares one GPU name; None elsewhere.
        tensorrt: the full version.
    """

    bundle: str
    variant: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    board: Optional[str]
    tensorrt: str

    @classmethod
    def of(cls, index: Index, variant: Variant, device: DeviceFacts) -> Key:
        """Return the key of an engine that is built on this device."""
        # The variant's requirements were checked before, so there is a GPU with TensorRT.
        return cls(
            index.content_digest,
            variant.name,
            str(device["gpu"]),
            str(device["compute_capability"]),
            device["multiprocessors"] or 0,
            device["board"],
            str(device["tensorrt"]),
        )


@dataclass(frozen=True)
class Sealed:
    """Sealed engine that passed the trust checks; its contents are not read yet.

    Attributes:
        path: its file.
        key: its bundle, GPU and TensorRT.
        files: name -> (SHA-256, bytes).
    """

    path: str
    key: Key
    files: Mapping[str, Tuple[str, int]]

    def check_match(
        self, index: Index, variant: Variant, device: DeviceFacts
    ) -> Optional[DeviceError]:
        """Return the error for a mismatch of bundle or device; None if both match."""
        required = asdict(Key.of(index, variant, device))
        recorded = asdict(self.key)
        subject, differences = "device", []
        for name, value in required.items():
            if value != recorded[name]:
                differences.append(f"{name}: it was built for {recorded[name]}; this is {value}")
                if name in ("bundle", "variant"):
                    subject = "bundle"
        if not differences:
            return None
        return DeviceError(
            "engine-other",
            "the engine sealed beside the bundle is for another " + subject,
            why="\n".join(differences),
            hint=FINISH,
        )

    def read(self, name: str) -> bytes:
        """Return one of its files. Raises DeviceError unless size and hash match the key."""
        with _open(self.path) as archive:
            data = archive.read(name)
        digest = hashlib.sha256(data).hexdigest()
        if (digest, len(data)) != self.files[name]:
            raise _fault(name, "its hash is not the one that its key lists")
        return data


def engine_path(bundle: str) -> str:
    """Return the path of a bundle's sealed engine."""
    return bundle + SUFFIX


def find(bundle: str) -> Optional[Sealed]:
    """Open a bundle's sealed engine; None if there is none. Raises DeviceError for a bad one."""
    path = engine_path(bundle)
    if not os.path.lexists(path):
        return None
    with _open(path) as archive:
        if set(archive.entries) != {KEY, PLAN, TIMING}:
            raise _fault("", "its entries are not those of an engine")
        if archive.entries[KEY].size > MAX_KEY_BYTES:
            raise _fault(KEY, "it is too large")
        top = parse(archive.read(KEY), _fault, MAX_KEY_BYTES)
        if top.get("format", str) != FORMAT:
            raise _fault(KEY, f"its format is {top.value['format']!r}")
        listed: Dict[str, Tuple[str, int]] = {}
        for name in (PLAN, TIMING):
            entry = top.at("files").at(name)
            listed[name] = entry.get("sha256", str), entry.get("bytes", int)
            if archive.entries[name].size != listed[name][1]:
                raise _fault("files", "their sizes are not those that its key lists")
    return Sealed(path, _key(top.at("engine")), listed)


def _key(reader: Reader) -> Key:
    return Key(
        reader.get("bundle", str),
        reader.get("variant", str),
        reader.get("gpu", str),
        reader.get("compute_capability", str),
        reader.get("multiprocessors", int),
        reader.get("board", str, type(None)),
        reader.get("tensorrt", str),
    )


def _fault(path: str, why: str) -> DeviceError:
    return DeviceError(
        "engine-seal",
        "the engine sealed beside the bundle is not intact",
        why=": ".join(filter(None, (path, why))),
        hint=FINISH,
    )


def _open(path: str) -> Archive:
    try:
        return Archive(path, KEY, open_trusted)
    except BundleError as error:
        raise _fault("", error.why) from error


def open_trusted(path: str, flags: int) -> int:
    """Open a sealed engine if only this user and root could have created or changed it.

    Raises DeviceError otherwise, and OSError if the system refuses.
    """
    return open_own(path, flags, lambda why: _untrusted_error(path, why))


def _untrusted_error(path: str, why: str) -> DeviceError:
    """Return the error for a file that another user could have created or changed."""
    return DeviceError(
        "engine-untrusted",
        "the engine sealed beside the bundle is not trusted and was not opened",
        why=f"{path}: {why}",
        hint=FINISH,
    )


def write(
    file: BinaryIO, key: Key, plan: bytes, timing_cache: bytes, details: Mapping[str, object]
) -> None:
    """Write a sealed engine into an open, empty file.

    Args:
        file: binary, at its beginning.
        key: the engine's bundle, GPU and TensorRT.
        plan: the engine.
        timing_cache: for the next build.
        details: further facts for people; the loader does not read them.
    """
    contents: List[Tuple[str, bytes]] = [(PLAN, plan), (TIMING, timing_cache)]
    files: Dict[str, FileEntry] = {}
    for name, data in contents:
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    document = {"format": FORMAT, "engine": asdict(key), "files": files, "told": dict(details)}
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            for name, data in [(KEY, encode(document)), *contents]:
                # The fixed header fields of `archive`: Unix, mode 0644.
                info = zipfile.ZipInfo(name, _EPOCH)
                info.create_system = 3
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
    except zipfile.LargeZipFile as error:
        raise DeviceError(
            "engine-too-large",
            "the engine is too large to seal",
            why=f"it has {len(plan):,} bytes; the limit of the format is 2 GiB",
            hint="set a smaller workspace_mb in the target profile, or build a smaller model",
        ) from error
