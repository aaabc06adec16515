"""Kinds of preprocessing: the interface that all of them have, and reading one from a document.

A kind is a module of this package with a frozen dataclass, which is `bundle.json["preprocessing"]`:

    {"kind": "picture", "input": "image", "resize": 256, "crop": 224, "mean": [0.485, ...], ...}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Mapping, Optional, Protocol, Tuple

from ..bundle.index import Index, check_file

if TYPE_CHECKING:
    import numpy as np

    from ..bundle.archive import Archive
    from ..strict_json import Reader

# Returns the contents of an entry of the bundle by its name.
ReadFile = Callable[[str], bytes]


class Preprocessing(Protocol):
    """Conversion of one raw sample to a feed of the model.

    The build host and the device run the same code. Only numpy is imported with a kind's
    module; `prepare` imports the packages that decode.
    """

    @property
    def takes_text(self) -> bool:
        """True if a string is a sample itself, and not the path of a file."""

    @property
    def least_db(self) -> Optional[float]:
        """SNR in dB that arrays reach if another version of a package made them.

        None if every version makes the same arrays.
        """

    @property
    def noise(self) -> float:
        """RMS error of an element that versions of a package may differ by; 0 for none."""

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return a feed of one sample, with the batch axis.

        Args:
            data: the raw sample, such as the contents of a JPEG.
            name: of the sample, for messages.

        Raises InputError if the data are damaged or cannot be used, DeviceError if a package is
        missing.
        """

    def versions(self) -> Dict[str, str]:
        """Return the versions of the packages that decide the arrays, by name.

        Raises DeviceError if a package is missing.
        """

    def requirements(self) -> Tuple[str, ...]:
        """Return the lines of requirements.txt for the device, besides numpy and the engine."""

    def files(self) -> Mapping[str, bytes]:
        """Return the entries of the bundle that it reads, by name; below `preprocess/`."""

    def to_json(self) -> Dict[str, object]:
        """Return the document, with the key `kind`."""


def open_preprocessing(archive: Archive, index: Index) -> Optional[Preprocessing]:
    """Return the preprocessing of an open bundle; None if it has none.

    Raises BundleError if its document or one of its files is not valid.
    """
    if index.preprocessing is None:
        return None
    return read_preprocessing(index.preprocessing, lambda name: check_file(archive, index, name))


def read_preprocessing(reader: Reader, read_file: ReadFile) -> Preprocessing:
    """Read a preprocessing of any kind.

    Args:
        reader: of its document.
        read_file: returns an entry of the bundle, for kinds that have files.

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

        return Code.read(reader, read_file)
    raise reader.fault(f"this loader has no preprocessing of the kind {kind!r}")
