"""Putting a finished bundle in its place, with its hash and its signature beside it.

All three are on the disk, whole, before the first rename, so that no full disk comes between them.
The bundle is renamed first: what a crash leaves is the old bundle with what belongs to it, or the
new one beside a hash and a signature of the old one, which do not match it and so are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edgepack import files, signing
from edgepack.runtime.bundle.checksum import SUFFIX, encode_checksum
from edgepack.runtime.bundle.whole import file_mode


def publish(temporary: Path, path: Path, signature: bytes = b"") -> str:
    """Rename a finished bundle to `path`, and write what accompanies it.

    Args:
        temporary: the bundle, on the same file system.
        path: its place.
        signature: of the bundle; without one, that of an earlier bundle is deleted.

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
    """Write what accompanies a bundle into temporary files, by the place of each.

    None stands for what is to be deleted there: it belongs to the bundle before.
    """
    ready: dict[Path, Path | None] = {}
    for suffix, text in texts.items():
        target = path.with_name(path.name + suffix)
        if not text:
            if os.path.lexists(target):
                ready[target] = None
            continue
        part = ready[target] = stack.enter_context(files.temporary_beside(target))
        try:
            part.write_bytes(text)
            part.chmod(file_mode())
            files.sync(part)
        except OSError as error:
            raise files.unwritable(target, error) from error
    return ready


def _replace(target: Path, part: Path | None) -> None:
    """Rename a temporary file to its place; without one, delete what stands there."""
    try:
        if part is None:
            target.unlink(missing_ok=True)
        else:
            part.replace(target)
        files.sync(target.parent)
    except OSError as error:
        raise files.unwritable(target, error) from error
