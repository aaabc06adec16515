"""A format of models: an ONNX file compressed by gzip."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path

from edgepack.errors import SourceError
from edgepack.source import LoadOptions, Source, load

# The unpacked model is read throughout the build, and removed when the process ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="edgepack-example-")
LARGEST = 1 << 30


class GzipOnnx:
    """An ONNX file compressed by gzip."""

    name = "gzip-onnx"
    description = "a compressed ONNX file"
    takes_network = False

    def detect(self, path: Path) -> bool:
        """Return True for gzip's magic bytes."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"

    def load(self, path: Path, options: LoadOptions) -> Source:
        """Unpack the file and load the ONNX in it."""
        try:
            with gzip.open(path) as file:
                content = file.read(LARGEST)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(
                "gzip-corrupt",
                f"{path.name} cannot be unpacked",
                why=str(error),
                hint="download it again",
            ) from error
        unpacked = Path(_FOLDER.name) / "model.onnx"
        unpacked.write_bytes(content)
        return load(unpacked)


GZIP_ONNX = GzipOnnx()
