"""Samples in a folder of array files or of pictures."""

from __future__ import annotations

from pathlib import Path

from edgepack.data.arrays import open_arrays
from edgepack.data.pictures import SUFFIXES, open_pictures
from edgepack.data.preprocessing import Preprocessing
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor


def array_shards(folder: Path) -> tuple[Path, ...]:
    """Return the `.npz` and `.npy` files directly in a folder, in the order of their names."""
    return tuple(
        sorted(p for p in folder.iterdir() if p.suffix in (".npz", ".npy") and p.is_file())
    )


def open_folder(
    folder: Path,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    *,
    origin: str,
) -> SampleStream:
    """Open the samples of a folder of array files or of pictures.

    Array files are read from the folder itself, pictures from its subfolders too, both in the
    order of their names. Names that begin with a dot are ignored.

    Raises:
        DataError: the folder holds neither or both, or its samples do not fit the inputs.
    """
    # Hidden entries are skipped at every level: a dataset from macOS holds ._cat.jpg beside
    # cat.jpg, and a checkout may hold pictures below .git.
    shards = array_shards(folder)
    pictures = tuple(
        sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    )
    if shards and pictures:
        raise DataError(
            "samples-folder-mixed",
            f"{folder} holds both arrays and pictures",
            why=f"{len(shards)} array file(s), such as {shards[0].name}, and {len(pictures)} "
            f"picture(s), such as {pictures[0].name}",
            hint="keep arrays and pictures in separate folders",
        )
    if shards:
        return open_arrays(shards, inputs, origin=f"{origin} ({len(shards)} files)")
    if pictures:
        origin = f"{origin} ({len(pictures)} pictures)"
        return open_pictures(folder, pictures, inputs, preprocessing, origin=origin)
    raise DataError(
        "samples-folder-empty",
        f"{folder} holds no samples",
        why="there is no .npz, .npy or picture in it",
        hint=f"pictures are recognised by their suffix: {', '.join(sorted(SUFFIXES))}",
    )
