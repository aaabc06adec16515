"""`BUNDLE.sha256`: the hash of the whole file, beside it, as `sha256sum` writes and checks it.

The index in a bundle vouches for every entry, and nothing in a file can vouch that the file is not
another one, or an empty one. The hash beside it does, against accidents: whoever can change the
bundle can change the hash too.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Optional

from ..errors import BundleError
from .archive import Archive

SUFFIX = ".sha256"
MAX_BYTES = 1 << 13
_LINE = re.compile(rb"\\?([0-9a-f]{64})[ \t][ *]?[^\n]+\n?\Z")


def encode_checksum(digest: str, name: str) -> bytes:
    """Return the file's one line, in sha256sum's format.

    Args:
        digest: SHA-256 of the bundle, in hexadecimal.
        name: of the bundle, without its folder.
    """
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "" if escaped == name else "\\"
    return os.fsencode("{}{}  {}\n".format(mark, digest, escaped))


def read_checksum(bundle: str) -> Optional[str]:
    """Return the hash that stands beside a bundle; None where there is none.

    Raises BundleError where the file cannot be read or is not in sha256sum's format.
    """
    path = bundle + SUFFIX
    # NONBLOCK: opening a named pipe would wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _fault(path, "it is not a regular file")
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _fault(path, error.strerror or str(error)) from error
    line = _LINE.match(data)
    if line is None:
        raise _fault(path, "it is not one line of sha256sum")
    return line.group(1).decode("ascii")


def require_checksum(archive: Archive) -> str:
    """Hash the whole bundle, and hold that against the hash beside it where there is one.

    Returns the hash. Raises BundleError where the two differ.
    """
    found, listed = archive.sha256(), read_checksum(archive.path)
    if listed is not None and found != listed:
        raise mismatch(archive.path + SUFFIX, found, listed)
    return found


def mismatch(origin: str, found: str, expected: str) -> BundleError:
    """Return the error for a bundle whose hash is not the expected one.

    Args:
        origin: who expects it: a file or an option.
        found: the bundle's hash.
        expected: the hash that it should have.
    """
    return BundleError(
        "bundle-checksum",
        "the bundle is not the file that is expected",
        why="its SHA-256 is {}\n{} says {}".format(found, origin, expected),
        hint="fetch the bundle and its .sha256 again from where it was built",
    )


def _fault(path: str, why: str) -> BundleError:
    return BundleError(
        "bundle-checksum",
        "the hash beside the bundle cannot be read",
        why="{}: {}".format(path, why),
        hint="fetch the bundle and its .sha256 again from where it was built",
    )
