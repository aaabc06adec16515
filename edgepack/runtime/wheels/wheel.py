"""One wheel, unpacked without pip and without trust.

A wheel is a zip (PEP 427) whose RECORD lists every file in it with its hash. The bundle's index
vouches for the wheel's bytes; what is in it is held against its own RECORD all the same, and no
name leads out of the folder that it is unpacked in: no absolute or upward path, no link, no name
twice, nothing that RECORD does not list.
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
from typing import Any, BinaryIO, Dict, Iterator, Tuple

from ..errors import BundleError
from .tags import read_tags

CHUNK = 1 << 20
MAX_FILES = 50000
# A wheel that unpacks to so many times its size is a bomb; libraries unpack to three or four.
MAX_RATIO = 100
# RECORD, WHEEL and METADATA are read whole.
MAX_TEXT = 16 << 20
# What RECORD lists without a hash: itself, and its signatures.
UNHASHED = ("RECORD", "RECORD.jws", "RECORD.p7s")
HASHES = ("sha256", "sha384", "sha512")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
# What a broken zip or a broken RECORD makes Python raise.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, csv.Error),
    *(ValueError, EOFError, NotImplementedError, RuntimeError),
)


def safe(path: str) -> bool:
    """Whether a path in a zip stays below the folder that it is unpacked in."""
    return not _UNSAFE.search(path) and all(part not in ("", ".", "..") for part in path.split("/"))


class Wheel:
    """An open wheel; a context manager.

    Attributes:
        name: its file name.
        tags: what that says.
        files: path below site-packages to its entry in the zip. What a wheel keeps for other
            places (commands, headers, manuals) is left out: the loader needs none of it.

    Raises BundleError for whatever is not a wheel with just the files that RECORD lists. Their
    contents are hashed as they are read.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.tags = read_tags(name)
        with self._told():
            size = file.seek(0, io.SEEK_END)
            self._zip = zipfile.ZipFile(file)
            entries = self._scan()
            if sum(info.file_size for info in entries.values()) > MAX_RATIO * size:
                raise self._fault("it unpacks to more than {} times its size".format(MAX_RATIO))
            self._record = self._listed(entries)
            self.files = self._places(entries)

    def __enter__(self) -> "Wheel":
        return self

    def __exit__(self, *exc: Any) -> None:
        self._zip.close()

    def _fault(self, why: str) -> BundleError:
        return BundleError(
            "wheel-malformed",
            "this wheel cannot be unpacked: {}".format(self.name),
            why=why,
            hint="fetch the bundle again from where it was built",
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            raise self._fault("{}: {}".format(type(error).__name__, error)) from error

    def _scan(self) -> Dict[str, zipfile.ZipInfo]:
        """Every file by name; entries of folders are checked, and have no further meaning."""
        entries: Dict[str, zipfile.ZipInfo] = {}
        infos = self._zip.infolist()
        if len(infos) > MAX_FILES:
            raise self._fault("it has {} files".format(len(infos)))
        for info in infos:
            # As it is written: zipfile hides what follows a NUL in `filename`.
            name = info.orig_filename
            folder = name.endswith("/")
            if not safe(name[:-1] if folder else name):
                raise self._fault("a file has the name {!r}".format(name[:80]))
            if stat.S_IFMT(info.external_attr >> 16) not in (
                0,
                stat.S_IFDIR if folder else stat.S_IFREG,
            ):
                raise self._fault("{!r} is a link or a device".format(name))
            if info.flag_bits & 1 or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise self._fault("{!r} is encrypted or packed in an unusual way".format(name))
            if name in entries:
                raise self._fault("{!r} is there twice".format(name))
            if not folder:
                entries[name] = info
        return entries

    def _listed(self, entries: Dict[str, zipfile.ZipInfo]) -> Dict[str, Tuple[str, bytes]]:
        """RECORD: path to name and value of its hash; proved to list just what is there."""
        records = [path for path in entries if re.match(r"[^/]+\.dist-info/RECORD\Z", path)]
        if len(records) != 1:
            raise self._fault("it has {} files RECORD".format(len(records)))
        self._info = records[0].partition("/")[0]
        version = re.search(r"^Wheel-Version: *([0-9]+)\.", self.text("WHEEL"), re.MULTILINE)
        if not version or version.group(1) != "1":
            raise self._fault("it is of a format that is not known here")
        unhashed = ["{}/{}".format(self._info, name) for name in UNHASHED]
        listed: Dict[str, Tuple[str, bytes]] = {}
        for row in csv.reader(io.StringIO(self.text("RECORD")), strict=True):
            if not row:
                continue
            if len(row) != 3 or row[0] in listed:
                raise self._fault("RECORD has the line {!r}".format(",".join(row)[:200]))
            path, told, size = row
            entry = entries.get(path)
            if entry is None or (size and int(size) != entry.file_size):
                raise self._fault("{!r} is not as RECORD lists it".format(path))
            kind, _, value = told.partition("=")
            if path in unhashed:
                kind, value = "", ""
            elif kind not in HASHES:
                raise self._fault("RECORD has no hash of {!r}".format(path))
            listed[path] = kind, base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        odd = sorted(set(entries) - set(listed))
        if odd:
            raise self._fault("RECORD does not list {!r}".format(odd[0]))
        return listed

    def _places(self, entries: Dict[str, zipfile.ZipInfo]) -> Dict[str, zipfile.ZipInfo]:
        places: Dict[str, zipfile.ZipInfo] = {}
        for path, info in entries.items():
            place = path
            if path.partition("/")[0].endswith(".data"):
                _, scheme, place = (*path.split("/", 2), "", "")[:3]
                if scheme not in ("purelib", "platlib") or not place:
                    continue
            if place in places:
                raise self._fault("{!r} is there twice".format(place))
            places[place] = info
        return places

    def text(self, name: str) -> str:
        """A text beside RECORD: METADATA, which says what the package requires."""
        with self._told():
            try:
                info = self._zip.getinfo("{}/{}".format(self._info, name))
            except KeyError:
                raise self._fault("it has no file {}".format(name)) from None
            if info.file_size > MAX_TEXT:
                raise self._fault("{} has {} bytes".format(name, info.file_size))
            return self._zip.read(info).decode("utf-8")

    def digest(self, place: str) -> Tuple[str, bytes]:
        """Name and value of the hash that RECORD has of a file; ("", b"") of RECORD itself."""
        return self._record[self.files[place].filename]

    def chunks(self, place: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece. Raises BundleError at its end if they differ."""
        kind, wanted = self.digest(place)
        found = hashlib.new(kind or "sha256")
        with self._told(), self._zip.open(self.files[place]) as file:
            while True:
                chunk = file.read(CHUNK)
                if not chunk:
                    break
                found.update(chunk)
                yield chunk
        if kind and found.digest() != wanted:
            raise self._fault("{!r} has another hash than RECORD lists".format(place))
