"""Unpack a wheel without pip and without trusting it.

A wheel is a zip (PEP 427) whose RECORD lists each of its files with a hash. Although the bundle's
index vouches for the wheel's bytes, its contents are checked against RECORD, and no name may lead
out of the target folder: no absolute or upward path, no link, no repeated name, no unlisted file.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import BinaryIO, Dict, Iterator, Tuple

from ..errors import BundleError
from .tags import read_tags

CHUNK = 1 << 20
MAX_FILES = 50000
# Expansion beyond this factor is a zip bomb; libraries expand three- or fourfold.
MAX_RATIO = 100
# Limit for RECORD, WHEEL and METADATA, which are read into memory.
MAX_TEXT = 16 << 20
# Files that RECORD lists without a hash: itself, and its signatures.
UNHASHED = ("RECORD", "RECORD.jws", "RECORD.p7s")
HASHES = ("sha256", "sha384", "sha512")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
# Exceptions that Python raises for a broken zip or a broken RECORD.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, csv.Error),
    *(ValueError, EOFError, NotImplementedError, RuntimeError),
)


def safe(path: str) -> bool:
    """Return True if a path in a zip stays below the folder that it is unpacked in.

    `a/b.py` does; `/a`, `a/../b`, `a//b`, `C:a` and `a\\b` do not.
    """
    return not _UNSAFE.search(path) and all(part not in ("", ".", "..") for part in path.split("/"))


class Wheel:
    """Open wheel; a context manager.

    Attributes:
        name: its file name.
        tags: parsed file name.
        files: path below site-packages -> its entry in the zip. Files for other locations
            (commands, headers, manuals) are left out: the loader needs none of them.

    Raises BundleError for anything but a wheel with exactly the files that RECORD lists. Their
    contents are hashed as they are read.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.tags = read_tags(name)
        with self._as_fault():
            size = file.seek(0, io.SEEK_END)
            self._zip = zipfile.ZipFile(file)
            entries = self._scan()
            if sum(info.file_size for info in entries.values()) > MAX_RATIO * size:
                raise self._fault(f"it unpacks to more than {MAX_RATIO} times its size")
            self._record = self._read_record(entries)
            self.files = self._targets(entries)

    def __enter__(self) -> "Wheel":
        return self

    def __exit__(self, *exc: object) -> None:
        self._zip.close()

    def _fault(self, why: str) -> BundleError:
        return BundleError(
            "wheel-malformed",
            f"this wheel cannot be unpacked: {self.name}",
            why=why,
            hint="copy the bundle again from the build host",
        )

    @contextmanager
    def _as_fault(self) -> Iterator[None]:
        """Turn the exceptions of a broken zip into BundleError."""
        try:
            yield
        except _BROKEN as error:
            raise self._fault(f"{type(error).__name__}: {error}") from error

    def _scan(self) -> Dict[str, zipfile.ZipInfo]:
        """Return every file by name; folders are checked and then ignored."""
        entries: Dict[str, zipfile.ZipInfo] = {}
        infos = self._zip.infolist()
        if len(infos) > MAX_FILES:
            raise self._fault(f"it has {len(infos)} files")
        for info in infos:
            # The raw name: `filename` hides everything after a NUL.
            name = info.orig_filename
            folder = name.endswith("/")
            if not safe(name[:-1] if folder else name):
                raise self._fault(f"a file has the name {name[:80]!r}")
            if stat.S_IFMT(info.external_attr >> 16) not in (
                0,
                stat.S_IFDIR if folder else stat.S_IFREG,
            ):
                raise self._fault(f"{name!r} is a link or a device")
            if info.flag_bits & 1 or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise self._fault(f"{name!r} is encrypted or compressed in an unusual way")
            if name in entries:
                raise self._fault(f"{name!r} is repeated")
            if not folder:
                entries[name] = info
        return entries

    def _read_record(self, entries: Dict[str, zipfile.ZipInfo]) -> Dict[str, Tuple[str, bytes]]:
        """Read RECORD, path -> hash name and value, and check that it lists exactly the entries.

        A row is `numpy/__init__.py,sha256=URL-safe base64 without padding,22388`.
        """
        records = [path for path in entries if re.match(r"[^/]+\.dist-info/RECORD\Z", path)]
        if len(records) != 1:
            raise self._fault(f"it has {len(records)} RECORD files instead of one")
        self._info = records[0].partition("/")[0]
        version = re.search(r"^Wheel-Version: *([0-9]+)\.", self.text("WHEEL"), re.MULTILINE)
        if not version or version.group(1) != "1":
            raise self._fault("its format is not Wheel-Version 1")
        unhashed = [f"{self._info}/{name}" for name in UNHASHED]
        listed: Dict[str, Tuple[str, bytes]] = {}
        for row in csv.reader(io.StringIO(self.text("RECORD")), strict=True):
            if not row:
                continue
            if len(row) != 3 or row[0] in listed:
                raise self._fault(f"RECORD has the line {','.join(row)[:200]!r}")
            path, stated_hash, size = row
            entry = entries.get(path)
            if entry is None or (size and int(size) != entry.file_size):
                raise self._fault(f"{path!r} does not match RECORD")
            kind, _, value = stated_hash.partition("=")
            if path in unhashed:
                kind, value = "", ""
            elif kind not in HASHES:
                raise self._fault(f"RECORD has no hash of {path!r}")
            # RECORD omits the padding of base64: 43 characters need one "=" to make 44.
            listed[path] = kind, base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        unlisted = sorted(set(entries) - set(listed))
        if unlisted:
            raise self._fault(f"RECORD does not list {unlisted[0]!r}")
        return listed

    def _targets(self, entries: Dict[str, zipfile.ZipInfo]) -> Dict[str, zipfile.ZipInfo]:
        """Map each path below site-packages to its entry.

        `numpy/core.py` and `numpy-1.0.data/purelib/core.py` go below site-packages,
        `numpy-1.0.data/scripts/f2py` does not.
        """
        targets: Dict[str, zipfile.ZipInfo] = {}
        for path, info in entries.items():
            target = path
            if path.partition("/")[0].endswith(".data"):
                _, scheme, target = (*path.split("/", 2), "", "")[:3]
                if scheme not in ("purelib", "platlib") or not target:
                    continue
            if target in targets:
                raise self._fault(f"{target!r} is repeated")
            targets[target] = info
        return targets

    def text(self, name: str) -> str:
        """Return a text file beside RECORD, such as METADATA with the package's requirements."""
        with self._as_fault():
            try:
                info = self._zip.getinfo(f"{self._info}/{name}")
            except KeyError:
                raise self._fault(f"it has no file {name}") from None
            # `file_size` is the size after unpacking, so a bomb is refused before it unpacks.
            if info.file_size > MAX_TEXT:
                raise self._fault(f"{name} has {info.file_size} bytes")
            return self._zip.read(info).decode("utf-8")

    def digest(self, path: str) -> Tuple[str, bytes]:
        """Return name and value of a file's hash in RECORD; ("", b"") for RECORD itself."""
        return self._record[self.files[path].filename]

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file in pieces. Raises BundleError at the end for a wrong hash."""
        kind, expected = self.digest(path)
        digest = hashlib.new(kind or "sha256")
        with self._as_fault(), self._zip.open(self.files[path]) as file:
            while True:
                chunk = file.read(CHUNK)
                if not chunk:
                    break
                digest.update(chunk)
                yield chunk
        if kind and digest.digest() != expected:
            raise self._fault(f"the hash of {path!r} does not match RECORD")
