"""Strict reader for the bundle file, a zip in one canonical form.

Zip readers disagree about duplicate names, overlapping entries, data before the first entry and
names that local and central headers spell differently; each of those disagreements has been used
in an attack. A bundle is written in exactly one form, so the reader accepts exactly that form:
entries stored without compression, back to back from byte 0, each header field at its one fixed
value, the central directory right after them in the same order, and the end record as the last 22
bytes. Anything else is refused, and no entry is read past its own bytes:

    | local header, name, bytes | ... | central header, name | ... | end record (22 bytes) |
    0                                 offset                       size - 22
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from binascii import crc32
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from ..errors import BundleError
from ..origin import origin
from ..plain import open_descriptor

INDEX = "bundle.json"
MAX_ENTRIES = 4096
MAX_INDEX_BYTES = 4 << 20
CHUNK = 1 << 20

# Layouts of the headers, little endian:
#   local    signature | version, flags, method, time, date | CRC, packed size, size
#            | lengths of name and extra field
#   central  signature | version of the writer, then as local | CRC, packed size, size
#            | lengths of name, extra field and comment | disk, attributes (internal, external)
#            | offset of the local header
#   end      signature | disk, disk of the directory, entries here, entries in all
#            | size and offset of the directory | length of the comment
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
# Header fields that never vary: the version of zip needed to read it, flags, method, time and date
# (1980-01-01); in the directory also the version and system (Unix) of the writer, the disk number,
# the internal attributes and the file's mode (0644).
_LOCAL_FIXED = (20, 0, 0, 0, 33)
_CENTRAL_FIXED = (3 << 8 | 20, *_LOCAL_FIXED, 0, 0, 0o644 << 16)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*\Z")


@dataclass(frozen=True)
class Entry:
    """File in the bundle.

    Attributes:
        name: path inside the bundle, with forward slashes.
        start: offset of its first byte in the bundle.
        size: in bytes.
        crc: CRC-32 of its bytes, as both headers record it.
    """

    name: str
    start: int
    size: int
    crc: int


def own_bundle() -> str:
    """Return the bundle that contains this loader. Raises BundleError if a folder does."""
    path = origin()
    if not os.path.isfile(path):
        raise BundleError(
            "bundle-not-named",
            "no bundle was named",
            why="this loader was not imported from a bundle",
            hint='load("MODEL.edgepack")',
        )
    return path


def _refuse(why: str, code: str = "bundle-malformed") -> BundleError:
    return BundleError(
        code,
        "this file is not an intact edgepack bundle",
        why=why,
        hint="copy it again from the build host, or build a new one: edgepack build",
    )


class Archive:
    """Open bundle; entries are read on demand.

    The file is read, not mapped: if a mapped file is truncated meanwhile, the system kills the
    reader (SIGBUS) without a message.

    Args:
        path: the file.
        index: the name of the entry that must be present.
        opener: opens the file, like the argument of `open`.

    Raises BundleError for any file that is not in canonical form.
    """

    def __init__(
        self, path: str, index: str = INDEX, opener: Optional[Callable[[str, int], int]] = None
    ) -> None:
        self.path = os.fspath(path)
        self._index = index
        try:
            self._file = open(self.path, "rb", opener=opener or open_descriptor)  # noqa: SIM115
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if self.size < _END.size:
                raise _refuse(f"it has only {self.size} bytes")
            self.entries: Dict[str, Entry] = {entry.name: entry for entry in self._scan()}
        except BaseException:
            self._file.close()
            raise

    def _unreadable(self, error: OSError) -> BundleError:
        return BundleError(
            "bundle-unreadable",
            f"the bundle cannot be read: {self.path}",
            why=error.strerror or str(error),
            hint="check the path and the permissions",
        )

    def _bytes(self, start: int, size: int) -> bytes:
        """Read exactly `size` bytes. Raises BundleError if the file ends before."""
        try:
            self._file.seek(start)
            data = self._file.read(size)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) != size:
            size_now = os.fstat(self._file.fileno()).st_size
            raise BundleError(
                "bundle-changed",
                "the bundle was truncated while it was read",
                why=f"it had {self.size:,} bytes and now has {size_now:,}",
                hint="run the command again; to replace a bundle, copy to another name and rename",
            )
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _scan(self) -> List[Entry]:
        end = self.size - _END.size
        magic, disk, start_disk, on_disk, total, length, offset, comment = _END.unpack(
            self._bytes(end, _END.size)
        )
        if magic != b"PK\5\6":
            raise _refuse("the end record of the archive is not at the end of the file")
        if comment or disk or start_disk or on_disk != total or not 0 < total <= MAX_ENTRIES:
            raise _refuse("its end record is not in canonical form")
        if offset + length != end:
            raise _refuse("there are bytes between the directory and the end record")
        entries: List[Entry] = []
        # `cursor` walks the local headers and `position` the directory. Each directory entry must
        # point at the cursor: with entries of 100 and 50 bytes (headers included) the second one
        # has to start at 100, or bytes would be shared or hidden.
        cursor, position = 0, offset
        for _ in range(total):
            entry, header, position = self._central(position, end)
            if header != cursor:
                raise _refuse(f"the entry {entry.name!r} overlaps another or leaves a gap")
            entries.append(self._local(entry, header, offset))
            cursor = entries[-1].start + entry.size
        if cursor != offset or position != end:
            raise _refuse("bytes in the archive belong to no entry")
        # On file systems that ignore case, `A` would overwrite `a`.
        folded = [entry.name.lower() for entry in entries]
        if len(set(folded)) != len(folded):
            raise _refuse("two entries have the same name, or differ in case alone")
        if self._index not in {entry.name for entry in entries}:
            raise _refuse("it has no " + self._index)
        return entries

    def _central(self, position: int, end: int) -> Tuple[Entry, int, int]:
        if position + _CENTRAL.size > end:
            raise _refuse("its directory is truncated")
        fields = _CENTRAL.unpack(self._bytes(position, _CENTRAL.size))
        crc, packed, size, name_length, extra, comment = fields[7:13]
        fixed, header = (*fields[1:7], *fields[13:16]), fields[16]
        noncanonical = fields[0] != b"PK\1\2" or fixed != _CENTRAL_FIXED
        if noncanonical or packed != size or extra or comment:
            raise _refuse("an entry of its directory is not stored in canonical form")
        name = self._name(position + _CENTRAL.size, name_length)
        return Entry(name, 0, size, crc), header, position + _CENTRAL.size + name_length

    def _local(self, entry: Entry, header: int, limit: int) -> Entry:
        if header + _LOCAL.size > limit:
            raise _refuse(f"the entry {entry.name!r} is truncated")
        fields = _LOCAL.unpack(self._bytes(header, _LOCAL.size))
        name_length, extra = fields[9:]
        noncanonical = fields[0] != b"PK\3\4" or fields[1:6] != _LOCAL_FIXED
        if noncanonical or extra or fields[6:9] != (entry.crc, entry.size, entry.size):
            raise _refuse(f"the two headers of {entry.name!r} differ")
        if self._name(header + _LOCAL.size, name_length) != entry.name:
            raise _refuse(f"{entry.name!r} has another name in its local header")
        start = header + _LOCAL.size + name_length
        if start + entry.size > limit:
            raise _refuse(f"the entry {entry.name!r} is truncated")
        return Entry(entry.name, start, entry.size, entry.crc)

    def _name(self, start: int, length: int) -> str:
        raw = self._bytes(start, length)
        try:
            # ASCII only: readers disagree on the encoding of other names.
            name = raw.decode("ascii")
        except UnicodeDecodeError:
            name = ""
        if not _NAME.match(name):
            raise _refuse(f"an entry has the name {raw[:80]!r}", "bundle-unsafe-name")
        return name

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry. Raises BundleError if it does not exist."""
        entry = self._find(name)
        return self._bytes(entry.start, entry.size)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of an entry, at most CHUNK at a time."""
        entry = self._find(name)
        end = entry.start + entry.size
        for start in range(entry.start, end, CHUNK):
            yield self._bytes(start, min(CHUNK, end - start))

    def hashes(self, name: str) -> Tuple[str, int]:
        """Return the SHA-256 of an entry, in hexadecimal, and its CRC-32, in one pass."""
        digest, crc = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            digest.update(chunk)
            crc = crc32(chunk, crc)
        return digest.hexdigest(), crc

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, in hexadecimal, as `sha256sum` prints it."""
        digest = hashlib.sha256()
        for start in range(0, self.size, CHUNK):
            digest.update(self._bytes(start, min(CHUNK, self.size - start)))
        return digest.hexdigest()

    def require_crc(self, name: str, crc: int) -> None:
        """Raise BundleError unless a CRC-32 equals the one in the headers of an entry.

        Needed only if no hash vouches for the bytes, or if the headers themselves are in question.
        """
        if crc != self._find(name).crc:
            raise _refuse(f"the checksum of the entry {name!r} does not match", "bundle-altered")

    def _find(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise _refuse(f"it has no entry {name!r}")
        return entry
