"""Publishing a finished bundle with its hash and its signature.

All three are completely on disk before the first rename, so that a full disk cannot come between
them. The bundle is renamed first: a crash leaves the old bundle with its hash and signature, or the
new one beside those of the old one, which do not match it and are rejected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edgepack import files, signing
from edgepack.runtime.bundle.checksum import SUFFIX, encode_checksum
from edgepack.runtime.plain import file_mode


def publish(temporary: Path, path: Path, signature: bytes = b"") -> str:
    """Rename a finished bundle to `path`, and write its hash and signature.

    Args:
        temporary: the bundle, on the same file system.
        path: the final path.
        signature: of the bundle; if empty, that of an earlier bundle is deleted.

    Returns the SHA-256 of the bundle. Raises HostError.
    """
    digest = files.sha256(temporary)
    texts = {SUFFIX: encode_checksum(digest, path.name), signing.SUFFIX: signature}
    with ExitStack() as stack:
        ready = _prepare(path, texts, stack)
        files.publish(temporary, path)
        for target, part in ready.items():
            _replace(target, part)
    return digest


def write_signature(bundle: Path, signature: bytes) -> Path:
    """Write the signature of a bundle beside it, and return its path. Raises HostError."""
    path = bundle.with_name(bundle.name + signing.SUFFIX)
    files.write(path, signature)
    return path


def _prepare(path: Path, texts: Mapping[str, bytes], stack: ExitStack) -> dict[Path, Path | None]:
    """Write the companions of a bundle to temporary files, and return these by final path.

    None marks a path to delete, because it belongs to the previous bundle.
    """
    ready: dict[Path, Path | None] = {}
    for suffix, text in texts.items():
        target = path.with_name(path.name + suffix)
        if not text:
            # A broken symbolic link does not exist, but is in the way all the same.
            if os.path.lexists(target):
                ready[target] = None
            continue
        part = ready[target] = stack.enter_context(files.temporary_beside(target))
        try:
            part.write_bytes(text)
            # Temporary files are private; the published one follows the umask.
            part.chmod(file_mode())
            files.sync(part)
        except OSError as error:
            raise files.unwritable(target, error) from error
    return ready


def _replace(target: Path, part: Path | None) -> None:
    """Rename a temporary file to its final path; None deletes that path instead."""
    try:
        if part is None:
            target.unlink(missing_ok=True)
        else:
            part.replace(target)
        files.sync(target.parent)
    except OSError as error:
        raise files.unwritable(target, error) from error
