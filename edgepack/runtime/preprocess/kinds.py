"""Kinds of preprocessing, and reading one from a document.

A kind is a module of this package with a frozen dataclass, which is `bundle.json["preprocessing"]`:

    {"kind": "picture", "input": "image", "resize": 256, "crop": 224, "mean": [0.485, ...], ...}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ..bundle.index import Index, check_file
from ..origin import is_own

if TYPE_CHECKING:
    from ..bundle.archive import Archive
    from ..strict_json import Reader
    from .protocol import Preprocessing, ReadFile


def open_preprocessing(archive: Archive, index: Index) -> Optional[Preprocessing]:
    """Return the preprocessing of an open bundle; None if it has none.

    Raises BundleError if its document or one of its files is not valid.
    """
    if index.preprocessing is None:
        return None
    return read_preprocessing(
        index.preprocessing, lambda name: check_file(archive, index, name), is_own(archive.path)
    )


def read_preprocessing(reader: Reader, read_file: ReadFile, own: bool = False) -> Preprocessing:
    """Read a preprocessing of any kind.

    Args:
        reader: of its document.
        read_file: returns an entry of the bundle, for kinds that have files.
        own: True if this loader was imported from the same bundle, whose code it then may run.

    Raises the reader's error if the document is not valid.
    """
    kind = reader.get("kind", str)
    if kind == "picture":
        from .picture import Picture

        return Picture.read(reader, read_file)
    if kind == "text":
        from .text import Text

        return Text.read(reader, read_file)
    if kind == "audio":
        from .audio import Audio

        return Audio.read(reader, read_file)
    if kind == "code":
        from .code import Code

        return Code.read(reader, read_file, own)
    raise reader.fault(f"this loader has no preprocessing of the kind {kind!r}")
