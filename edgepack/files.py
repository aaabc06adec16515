"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.errors import HostError

CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a written file durable, or the renames inside a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`, gone afterwards unless it was published.

    Being in the same folder it is on the same file system, so that `publish` is one rename.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Put a finished file in its place: fsync, rename, fsync of the folder.

    What stood there before stays whole until the rename. Raises HostError.
    """
    try:
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises HostError."""
    with temporary_beside(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise unwritable(path, error) from error
        publish(temporary, path)


def unwritable(path: Path, error: OSError) -> HostError:
    """The error for a place that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return HostError(
        "disk-full" if full else "output-unwritable",
        f"{path} cannot be written",
        why=error.strerror or str(error),
        hint="free some space; what stood there before is untouched"
        if full
        else "check that the folder exists and may be written",
    )
