"""A sealed engine: what `finish` built for this device, in a file beside the bundle.

`BUNDLE.engine` is a zip in the bundle's own canonical form: the engine, the timing cache for the
next build, and a key that says for which bundle, GPU and TensorRT the engine is, with the hash of
both. A TensorRT engine is native code, so it is trusted as the bundle itself is: a file that
somebody else could have put there or changed is not opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zipfile
from dataclasses import asdict, dataclass, fields
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Tuple

from ..errors import BundleError, DeviceError
from .archive import Archive
from .document import Reader, encode, parse
from .engines import FINISH, Variant
from .index import Index

FORMAT = "edgepack-engine/1"
SUFFIX = ".engine"
KEY, PLAN, TIMING = "key.json", "engine.plan", "timing.cache"
MAX_KEY_BYTES = 1 << 16
# The oldest time that a zip can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Key:
    """What an engine is for. All must be as it is on the device, to the letter.

    Attributes:
        bundle: the content digest of the bundle.
        variant: the name of the variant that it finishes.
        gpu: the GPU's name.
        compute_capability: of the GPU.
        multiprocessors: how many it has: GPUs of one name differ in it, and so do parts of one.
        board: of a Jetson, since all of a family name their GPU alike; None elsewhere.
        tensorrt: the whole version.
    """

    bundle: str
    variant: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    board: Optional[str]
    tensorrt: str

    @classmethod
    def of(cls, index: Index, variant: Variant, device: Mapping[str, Any]) -> Key:
        """The key of an engine that is built here; `device` as `here.Here`."""
        names = [field.name for field in fields(cls) if field.name not in ("bundle", "variant")]
        return cls(index.content_digest, variant.name, **{name: device[name] for name in names})


@dataclass(frozen=True)
class Sealed:
    """A sealed engine that may be trusted, not yet read.

    Attributes:
        path: its file.
        key: what it is for.
        files: name to (SHA-256, bytes).
    """

    path: str
    key: Key
    files: Mapping[str, Tuple[str, int]]

    def other_than(
        self, index: Index, variant: Variant, device: Mapping[str, Any]
    ) -> Optional[DeviceError]:
        """Why it is not for this bundle and device; None where it is."""
        wanted = asdict(Key.of(index, variant, device))
        found = asdict(self.key)
        odd = [name for name in wanted if wanted[name] != found[name]]
        if not odd:
            return None
        return DeviceError(
            "engine-other",
            "the engine sealed beside the bundle is for another "
            + ("bundle" if odd[0] in ("bundle", "variant") else "device"),
            why="\n".join(
                "{}: it was built for {}; here is {}".format(name, found[name], wanted[name])
                for name in odd
            ),
            hint=FINISH,
        )

    def read(self, name: str) -> bytes:
        """One of its files. Raises DeviceError unless it is as its key lists it."""
        with _opened(self.path) as archive:
            data = archive.read(name)
        digest = hashlib.sha256(data).hexdigest()
        if (digest, len(data)) != self.files[name]:
            raise _fault(name, "its hash is not the one that its key lists")
        return data


def place_of(bundle: str) -> str:
    """Where the sealed engine of a bundle is."""
    return bundle + SUFFIX


def find(bundle: str) -> Optional[Sealed]:
    """The sealed engine of a bundle; None where there is none. Raises DeviceError for a bad one."""
    path = place_of(bundle)
    if not os.path.lexists(path):
        return None
    with _opened(path) as archive:
        if set(archive.entries) != {KEY, PLAN, TIMING}:
            raise _fault("", "it holds other files than an engine's")
        if archive.entries[KEY].size > MAX_KEY_BYTES:
            raise _fault(KEY, "it is too large")
        top = parse(archive.read(KEY), _fault, MAX_KEY_BYTES)
        if top.get("format", str) != FORMAT:
            raise _fault(KEY, "its format is {!r}".format(top.value["format"]))
        listed = {name: _file(top.at("files").at(name)) for name in (PLAN, TIMING)}
        held = {name: archive.entries[name].size for name in (PLAN, TIMING)}
    if held != {name: size for name, (_, size) in listed.items()}:
        raise _fault("files", "their sizes are not those that its key lists")
    return Sealed(path, _key(top.at("engine")), listed)


def _file(reader: Reader) -> Tuple[str, int]:
    return reader.get("sha256", str), reader.get("bytes", int)


def _key(reader: Reader) -> Key:
    values: Dict[str, Any] = {}
    for field in fields(Key):
        kinds = {"multiprocessors": (int,), "board": (str, type(None))}
        values[field.name] = reader.get(field.name, *kinds.get(field.name, (str,)))
    return Key(**values)


def _fault(path: str, why: str) -> DeviceError:
    return DeviceError(
        "engine-seal",
        "the engine sealed beside the bundle is not intact",
        why="{}: {}".format(path, why) if path else why,
        hint=FINISH,
    )


def _opened(path: str) -> Archive:
    try:
        return Archive(path, KEY, open_trusted)
    except BundleError as error:
        raise _fault("", error.why) from error


def open_trusted(path: str, flags: int) -> int:
    """Open a sealed engine if nobody but this user and root could have made or changed it.

    Raises DeviceError elsewhere, and OSError where the system refuses.
    """
    # NONBLOCK: opening a named pipe would wait for its writer.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise untrusted(path, "it is a symbolic link") from error
        raise
    reason = suspicion(os.fstat(descriptor))
    if reason:
        os.close(descriptor)
        raise untrusted(path, reason)
    return descriptor


def suspicion(found: os.stat_result) -> str:
    """Why a file is not to be trusted with native code; empty where it is."""
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than its owner may write it (mode {:o})".format(stat.S_IMODE(found.st_mode))
    user = os.geteuid() if hasattr(os, "geteuid") else found.st_uid
    if found.st_uid not in (0, user):
        return "it belongs to user {}, and this is user {}".format(found.st_uid, user)
    return ""


def untrusted(path: str, why: str) -> DeviceError:
    """The error for a file that somebody else could have put there or changed."""
    return DeviceError(
        "engine-untrusted",
        "the engine sealed beside the bundle is not to be trusted, and was not opened",
        why="{}: {}".format(path, why),
        hint=FINISH,
    )


def write(
    file: BinaryIO, key: Key, plan: bytes, timing_cache: bytes, told: Mapping[str, Any]
) -> None:
    """Write a sealed engine into an open, empty file.

    Args:
        file: binary, at its beginning.
        key: what the engine is for.
        plan: the engine.
        timing_cache: for the next build.
        told: what else is worth knowing of it; nothing is decided by it.
    """
    contents: List[Tuple[str, bytes]] = [(PLAN, plan), (TIMING, timing_cache)]
    document = {
        "format": FORMAT,
        "engine": asdict(key),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in contents
        },
        "told": dict(told),
    }
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            for name, data in [(KEY, encode(document)), *contents]:
                info = zipfile.ZipInfo(name, _EPOCH)
                info.create_system = 3
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
    except zipfile.LargeZipFile as error:
        raise DeviceError(
            "engine-too-large",
            "the engine is too large to be sealed",
            why="it has {:,} bytes; the format holds 2 GiB".format(len(plan)),
            hint="a smaller workspace_mb in the target profile, or a smaller model",
        ) from error
