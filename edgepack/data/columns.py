"""The arrays of an `.npz` or `.npy` file, read front to back in bounded memory.

Rows are read from the stream, stored or compressed, into a buffer of one batch. A memory map
would do for the stored ones, but its pages count as the process's own memory until the kernel
takes them back, and the peak would seem to grow with the number of samples.
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

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
NPY_NAME = "input"
"""What an input is called that only an .npy file, which has no names, tells of."""


@dataclass
class Column:
    """One stored array, open at its next row.

    Attributes:
        name: the array's name.
        where: file and array, for messages.
        shape: of the whole array.
        dtype: as stored.
        stream: at the next row's first byte.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: IO[bytes]

    def read(self, rows: int) -> np.ndarray:
        """The next `rows` rows, as an array of their own.

        Raises:
            DataError: `samples-unreadable` where the file ends early or is damaged.
        """
        array = np.empty((rows, *self.shape[1:]), self.dtype)
        buffer = array.reshape(-1).view(np.uint8).data
        filled = 0
        with _readable(self.where):
            while filled < len(buffer):
                got = self.stream.readinto(buffer[filled:])  # type: ignore[attr-defined]
                if not got:
                    raise EOFError(f"it ends after {filled} of {len(buffer)} bytes of a batch")
                filled += got
        return array

    def finish(self) -> None:
        """Read past the last row, where a zip's checksum is compared."""
        with _readable(self.where):
            self.stream.read(1)


@contextlib.contextmanager
def open_columns(path: Path, inputs: tuple[Tensor, ...]) -> Iterator[list[Column]]:
    """The arrays of a file, each open at its first row.

    Args:
        path: an `.npz` or `.npy` file, recognised by its first bytes.
        inputs: the model's inputs, whose one name an `.npy` file's array takes.

    Raises:
        DataError: the file cannot be read, or is an `.npy` file for several inputs.
    """
    with ExitStack() as stack:
        with _readable(path.name):
            stream = stack.enter_context(open_plain(path))
            magic = stream.read(len(NPY_MAGIC))
            stream.seek(0)
        if magic == NPY_MAGIC:
            if len(inputs) > 1:
                raise DataError(
                    "samples-npy-inputs",
                    f"{path.name} holds one array, and the model takes several",
                    why=f"the model's inputs: {', '.join(t.name for t in inputs)}",
                    hint="save an .npz: numpy.savez(path, "
                    + ", ".join(f"{t.name}=..." for t in inputs)
                    + ")",
                )
            name = inputs[0].name if inputs else NPY_NAME
            yield [_open_column(stream, name, path.name, path.stat().st_size)]
        elif magic.startswith(ZIP_MAGIC):
            yield list(_members(stream, path, stack))
        else:
            raise DataError(
                "samples-format",
                f"{path.name} is neither an .npz nor an .npy file",
                why=f"it begins with {magic!r}",
                hint="save arrays with numpy.savez(path, INPUT=array, labels=labels)",
            )


def _members(stream: IO[bytes], path: Path, stack: ExitStack) -> Iterator[Column]:
    with _readable(path.name):
        archive = stack.enter_context(zipfile.ZipFile(stream))
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError(f"it should hold one .npy for each array; it holds {names[:9]}")
        if {entry.compress_type for entry in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("numpy stores or deflates arrays; these are packed otherwise")
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        with _readable(f"{path.name}, array {name}"):
            member = stack.enter_context(archive.open(entry))
        yield _open_column(member, name, f"{path.name}, array {name}", entry.file_size)


def _open_column(stream: IO[bytes], name: str, where: str, size: int) -> Column:
    """Read the header of an .npy stream of `size` bytes."""
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
        # Python's integers: numpy's product would wrap around for a forged shape.
        expected = dtype.itemsize
        for length in shape:
            expected *= length
        if size - stream.tell() != expected:
            raise ValueError(f"{shape} of {dtype} takes {expected} bytes; it has another size")
    if fortran and len(shape) > 1:
        raise DataError(
            "samples-fortran-order",
            f"{where} is stored column by column",
            why="samples of such an array are scattered over the file and cannot be streamed",
            hint="save numpy.ascontiguousarray(array)",
        )
    return Column(name, where, shape, dtype, stream)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what damaged or foreign files raise into one error.

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
        raise DataError(
            "samples-unreadable",
            f"{where} cannot be read",
            why=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
            hint="write it again with numpy.savez or numpy.save",
        ) from error
