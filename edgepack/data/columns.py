"""Arrays of an `.npz` or `.npy` file, read front to back in bounded memory.

Rows are read from the stream, stored or compressed, into a buffer of one batch. Stored arrays
could be memory-mapped instead, but mapped pages count as the process's memory until the kernel
reclaims them, so the peak would appear to grow with the number of samples.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edgepack.data.fit import refuse_objects
from edgepack.errors import DataError
from edgepack.runtime.plain import open_plain
from edgepack.runtime.tensor import Tensor
from edgepack.spec.tensors import names_of

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
# PNG, JPEG, GIF and BMP.
PICTURE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")
# An .npy file has no array names, so an input inferred from one gets this name.
NPY_NAME = "input"


@dataclass
class Column:
    """Stored array, open at its next row.

    Attributes:
        name: the array's name.
        where: file and array, for messages.
        shape: shape of the complete array, (rows, ...).
        dtype: element type as stored.
        stream: positioned at the first byte of the next row.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: IO[bytes]

    def read(self, rows: int) -> np.ndarray:
        """Read the next `rows` rows into a new array.

        Raises:
            DataError: `samples-unreadable` if the file ends early or is damaged.
        """
        array = np.empty((rows, *self.shape[1:]), self.dtype)
        buffer = array.reshape(-1).view(np.uint8).data
        filled = 0
        with _readable(self.where):
            # A decompressing stream may return fewer bytes than requested.
            while filled < len(buffer):
                size = self.stream.readinto(buffer[filled:])  # type: ignore[attr-defined]
                if not size:
                    raise EOFError(f"it ends after {filled} of {len(buffer)} bytes of a batch")
                filled += size
        return array

    def finish(self) -> None:
        """Read past the last row, so that `zipfile` compares the member's checksum."""
        with _readable(self.where):
            self.stream.read(1)


@contextlib.contextmanager
def open_columns(path: Path, inputs: tuple[Tensor, ...]) -> Iterator[list[Column]]:
    """Open the arrays of a file, each at its first row.

    Args:
        path: an `.npz` or `.npy` file, detected from its first bytes.
        inputs: the model's inputs; the array of an `.npy` file gets the name of the only one.

    Raises:
        DataError: the file cannot be read, or is an `.npy` file for several inputs.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(_open_file(path))
        with _readable(path.name):
            magic = stream.read(len(NPY_MAGIC))
            stream.seek(0)
        if magic == NPY_MAGIC:
            if len(inputs) > 1:
                arguments = ", ".join(f"{t.name}=..." for t in inputs)
                raise DataError(
                    "samples-npy-inputs",
                    f"{path.name} holds one array, and the model takes several",
                    why=f"the model's inputs: {', '.join(names_of(inputs))}",
                    hint=f"save an .npz: numpy.savez(path, {arguments})",
                )
            name = inputs[0].name if inputs else NPY_NAME
            yield [_open_column(stream, name, path.name, path.stat().st_size)]
        elif magic.startswith(ZIP_MAGIC):
            yield list(_members(stream, path, stack))
        elif magic.startswith(PICTURE_MAGIC):
            raise DataError(
                "samples-format",
                f"{path.name} is a picture, not samples",
                why="pictures are read from a folder, and converted as [pictures] says",
                hint="give the folder, with a manifest that has a table [pictures]",
            )
        else:
            raise DataError(
                "samples-format",
                f"{path.name} is neither an .npz nor an .npy file",
                why=f"it begins with {magic!r}",
                hint="save arrays with numpy.savez(path, INPUT=array, labels=labels)",
            )


def _open_file(path: Path) -> IO[bytes]:
    try:
        return open_plain(path)
    except OSError as error:
        raise DataError(
            "samples-unreadable",
            f"{path.name} cannot be read",
            why=error.strerror or str(error),
            hint="check the path: it must name an .npz or .npy file that you may read",
        ) from error


def _members(stream: IO[bytes], path: Path, stack: ExitStack) -> Iterator[Column]:
    with _readable(path.name):
        archive = stack.enter_context(zipfile.ZipFile(stream))
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError(f"it should hold one .npy for each array; it holds {names[:9]}")
        # numpy.savez stores and numpy.savez_compressed deflates; zipfile would also decode bzip2
        # and LZMA, which no version of numpy writes.
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("its arrays are neither stored nor deflated, as numpy writes them")
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        with _readable(f"{path.name}, array {name}"):
            member = stack.enter_context(archive.open(entry))
        yield _open_column(member, name, f"{path.name}, array {name}", entry.file_size)


def _open_column(stream: IO[bytes], name: str, where: str, size: int) -> Column:
    """Read the header of an .npy stream of `size` bytes."""
    # Versions 1 and 2 of the format differ in the width of the header's length. Version 3 is
    # for structured types with UTF-8 field names, and samples are plain numbers.
    with _readable(where):
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise ValueError(f"version {version} of the .npy format is not for plain numbers")
        shape, fortran, dtype = header(stream)
        refuse_objects(dtype, name, where)
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape is {shape}")
        # Python integers, since numpy's product would wrap around for a forged shape: 2**32 by
        # 2**32 bytes is 0 in int64.
        expected = dtype.itemsize
        for length in shape:
            expected *= length
        if size - stream.tell() != expected:
            raise ValueError(
                f"{shape} of {dtype} takes {expected} bytes; the file has {size - stream.tell()}"
            )
    if fortran and len(shape) > 1:
        raise DataError(
            "samples-fortran-order",
            f"{where} is stored in Fortran order",
            why="each sample of such an array is scattered over the file and cannot be streamed",
            hint="save numpy.ascontiguousarray(array)",
        )
    return Column(name, where, shape, dtype, stream)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Convert the exceptions of damaged or foreign files to one error.

    Raises:
        DataError: `samples-unreadable`.
    """
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,  # an encrypted member, an unknown compression (NotImplementedError)
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # Some exceptions have no text, as an EOFError of a truncated deflate stream.
        why = ": ".join(filter(None, (type(error).__name__, str(error))))
        raise DataError(
            "samples-unreadable",
            f"{where} cannot be read",
            why=why,
            hint="write it again with numpy.savez or numpy.save",
        ) from error
