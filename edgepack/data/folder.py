"""Samples in a folder of array files or of pictures."""

from __future__ import annotations

from pathlib import Path

from edgepack.data.arrays import open_arrays
from edgepack.data.pictures import SUFFIXES, open_pictures
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.runtime.preprocess.kinds import Preprocessing
from edgepack.runtime.tensor import Tensor


def array_shards(folder: Path) -> tuple[Path, ...]:
    """Return the `.npz` and `.npy` files directly in a folder, in the order of their names."""
    shards = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".npz", ".npy") and path.is_file():
            shards.append(path)
    return tuple(shards)


def _pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a folder and its subfolders, in the order of their paths."""
    pictures = []
    for path in folder.rglob("*"):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        # Hidden entries are skipped at every level: a dataset from macOS holds ._cat.jpg beside
        # cat.jpg, and a checkout may hold pictures below .git.
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            pictures.append(path)
    return tuple(sorted(pictures))


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
    shards = array_shards(folder)
    pictures = _pictures(folder)
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
