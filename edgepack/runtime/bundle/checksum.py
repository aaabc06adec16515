"""`BUNDLE.sha256`: the hash of the whole bundle, in the format of `sha256sum`.

The index in a bundle vouches for every entry, but nothing inside a file can vouch that the file is
not a different or an empty one. The separate hash does, against accidents only: anyone who can
change the bundle can change the hash too.
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
    r"""Return the single line of the file, in sha256sum's format.

    Like sha256sum, escape a name with special characters and mark the line with a backslash:

        encode_checksum("ab12...", "x.edgepack")   b"ab12...  x.edgepack\n"
        encode_checksum("ab12...", "a\nb")         b"\\ab12...  a\\nb\n"

    Args:
        digest: SHA-256 of the bundle, in hexadecimal.
        name: file name of the bundle, without its folder.
    """
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    line = f"{digest}  {escaped}\n"
    if escaped != name:
        line = "\\" + line
    return os.fsencode(line)


def read_checksum(bundle: str) -> Optional[str]:
    """Return the hash in the `.sha256` file of a bundle; None if there is no such file.

    Raises BundleError if the file cannot be read or is not in sha256sum's format.
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
        raise _fault(path, "it is not a single line in the format of sha256sum")
    return line.group(1).decode("ascii")


def require_checksum(archive: Archive) -> str:
    """Hash the whole bundle and compare the result with the `.sha256` file, if there is one.

    Returns the hash. Raises BundleError if the two differ.
    """
    digest, listed = archive.sha256(), read_checksum(archive.path)
    if listed is not None and digest != listed:
        raise mismatch(archive.path + SUFFIX, digest, listed)
    return digest


def mismatch(origin: str, digest: str, expected: str) -> BundleError:
    """Return the error for a bundle with another hash than expected.

    Args:
        origin: the file or option that states the expected hash.
        digest: the bundle's hash.
        expected: the hash that it should have.
    """
    return BundleError(
        "bundle-checksum",
        "the bundle is not the expected file",
        why=f"its SHA-256 is {digest}\n{origin} says {expected}",
        hint="copy the bundle and its .sha256 again from the build host",
    )


def _fault(path: str, why: str) -> BundleError:
    return BundleError(
        "bundle-checksum",
        "the bundle's .sha256 file cannot be read",
        why=f"{path}: {why}",
        hint="copy the bundle and its .sha256 again from the build host",
    )
