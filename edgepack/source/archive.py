"""Check zip archives from untrusted sources before reading them.

`zipfile` reads the last of two entries of one name and torch the first; overlapping entries
expand a few kilobytes to gigabytes; a local header may contradict the central one. Such an
archive is refused, so that the checked contents are the loaded contents.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from edgepack.errors import SourceError
from edgepack.runtime.plain import open_plain

MAX_ENTRIES = 200_000
MAX_UNPACKED = 256 << 20
"""Most bytes that all compressed entries may unpack to: they hold code, never weights."""
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")


def open_checked(path: Path, *, stored_only: bool = True) -> zipfile.ZipFile:
    """Open a zip archive whose entries are unambiguous.

    Args:
        path: the archive.
        stored_only: refuse compressed entries; torch's own writers never compress weights.

    Returns:
        The open archive; the caller closes it.

    Raises:
        SourceError: source-truncated if the archive's directory is missing,
            source-archive-unsafe if two readers could see different contents in it.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise SourceError(
            "source-truncated",
            f"{path.name} is not a complete zip archive",
            why=f"{error}; the file has {path.stat().st_size} bytes",
            hint="copy or download it again, and compare its size with the original's",
        ) from error
    try:
        fault = _find_fault(archive, path)
        if fault:
            raise _unsafe(path, fault)
        if stored_only:
            require_stored(path, archive)
    except BaseException:
        archive.close()
        raise
    return archive


def require_stored(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse compressed entries: a megabyte of them can fill a gigabyte of memory.

    Raises:
        SourceError: source-archive-unsafe.
    """
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _unsafe(path, f"the entry {entry.filename!r} is compressed")


def _unsafe(path: Path, fault: str) -> SourceError:
    return SourceError(
        "source-archive-unsafe",
        f"{path.name} is a zip archive that is not safe to read",
        why=fault,
        hint="save the model again with torch; do not use a file of unknown origin",
    )


def _find_fault(archive: zipfile.ZipFile, path: Path) -> str:
    """Describe the first fault of an archive; "" if it is unambiguous."""
    # These are from the central directory at the end of the file. Another reader may trust the
    # header before each entry, so `_find_layout_fault` compares the two.
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        return f"it has {len(entries)} entries, more than {MAX_ENTRIES}"
    names: set[str] = set()
    for entry in entries:
        name = entry.filename
        # Case is ignored: "Weight_0" and "weight_0" are one file on some file systems.
        if name.casefold() in names:
            return f"two entries have the name {name!r}"
        names.add(name.casefold())
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
            return f"the entry name {name!r} leaves the archive or cannot be printed"
        if entry.flag_bits & 0x1:
            return f"the entry {name!r} is encrypted"
    # Entries of one gigabyte of zeros are a megabyte each when they are deflated.
    unpacked = sum(e.file_size for e in entries if e.compress_type != zipfile.ZIP_STORED)
    if unpacked > MAX_UNPACKED:
        return f"its compressed entries unpack to {unpacked:,} bytes, more than {MAX_UNPACKED:,}"
    return _find_layout_fault(entries, path)


def _find_layout_fault(entries: list[zipfile.ZipInfo], path: Path) -> str:
    """Describe an overlap of entries, or a local header that contradicts the central directory."""
    # An entry is its local header, name and extra field, then its data:
    #     offset            +30          +name_length      +extra_length     +compress_size = end
    # The next one, by offset, must start at `end` or later.
    end = 0
    with open_plain(path) as file:
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < end:
                return f"the entry {entry.filename!r} overlaps the one before it"
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size:
                return f"the entry {entry.filename!r} lies outside the file"
            magic, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            encoding = "utf-8" if flags & 0x800 else "cp437"
            name = file.read(name_length).decode(encoding, errors="replace")
            if (
                magic != b"PK\x03\x04"
                or method != entry.compress_type
                or name != entry.orig_filename
            ):
                return f"the local header of {entry.filename!r} contradicts it: {name!r}"
            data = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            end = data + entry.compress_size
    return ""


def read_entry(archive: zipfile.ZipFile, name: str, file: str) -> bytes:
    """Return the content of one entry, its checksum verified.

    Raises:
        SourceError: source-corrupt.
    """
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise SourceError(
            "source-corrupt",
            f"{file} cannot be read",
            why=f"{name}: {error}",
            hint="copy or download it again, or save it again",
        ) from error
