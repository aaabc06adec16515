"""SHA-256 over everything that determines a model's answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from edgepack.runtime.plain import open_plain

CHUNK = 1 << 20


class Digest:
    """SHA-256 over labelled parts; distinct lists of parts give distinct bytes.

    `text("a", "b")` hashes the bytes `1:a:1:b`. Without the lengths, ("a", "bc") and ("ab", "c")
    would be the same bytes.
    """

    def __init__(self, kind: str) -> None:
        self._hash = hashlib.sha256()
        self.text("kind", kind)

    def text(self, label: str, value: str) -> None:
        """Add a string."""
        self.data(label, value.encode())

    def json(self, label: str, value: object) -> None:
        """Add a JSON value; anything else is identified by its `repr`."""
        self.text(label, json.dumps(value, sort_keys=True, default=repr))

    def data(self, label: str, value: bytes | memoryview) -> None:
        """Add bytes."""
        self._head(label, len(value))
        self._hash.update(value)

    def file(self, label: str, path: Path) -> None:
        """Add a file's content; its path does not matter."""
        # The digest of the content stands for it: its length must come first, and the length of a
        # file that grows while it is read is known only at its end.
        with open_plain(path) as file:
            self.data(label, _hash_stream(file))

    def files(self, label: str, paths: Iterable[tuple[str, Path]]) -> None:
        """Add files under names, in the names' order."""
        for name, path in sorted(paths):
            self.file(f"{label}:{name}", path)

    def hexdigest(self) -> str:
        """Return the digest, 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def _head(self, label: str, length: int) -> None:
        self._hash.update(f"{len(label)}:{label}:{length}:".encode())


def _hash_stream(file: BinaryIO) -> bytes:
    hasher = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher.digest()
