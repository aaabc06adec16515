"""Samples in a folder of array files, and errors of folders without samples."""

from __future__ import annotations

from pathlib import Path

from edgepack.data.arrays import open_arrays
from edgepack.data.layouts.picture_set import SUFFIXES, find_pictures
from edgepack.data.raw.recordings import SUFFIXES as RECORDING_SUFFIXES
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor


def array_shards(folder: Path) -> tuple[Path, ...]:
    """Return the `.npz` and `.npy` files directly in a folder, in the order of their names."""
    shards = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".npz", ".npy") and path.is_file():
            shards.append(path)
    return tuple(shards)


def open_shards(
    folder: Path, shards: tuple[Path, ...], inputs: tuple[Tensor, ...], *, origin: str
) -> SampleStream:
    """Open the samples of the array files in a folder, in the order of their names.

    Raises:
        DataError: there are pictures beside them, or the samples do not fit the inputs.
    """
    pictures = find_pictures(folder)
    if pictures:
        raise DataError(
            "samples-folder-mixed",
            f"{folder} holds both arrays and pictures",
            why=f"{len(shards)} array file(s), such as {shards[0].name}, and {len(pictures)} "
            f"picture(s), such as {pictures[0].name}",
            hint="keep arrays and pictures in separate folders",
        )
    return open_arrays(shards, inputs, origin=f"{origin} ({len(shards)} files)")


def refuse_mixed(folder: Path, recordings: tuple[Path, ...]) -> None:
    """Raise DataError `samples-folder-mixed` for a folder of recordings with pictures in it."""
    pictures = find_pictures(folder)
    if pictures:
        raise DataError(
            "samples-folder-mixed",
            f"{folder} holds both pictures and recordings",
            why=f"{len(pictures)} picture(s), such as {pictures[0].name}, and {len(recordings)} "
            f"recording(s), such as {recordings[0].name}",
            hint="keep pictures and recordings in separate folders",
        )


def empty_folder(folder: Path) -> DataError:
    """Return the error for a folder without samples."""
    return DataError(
        "samples-folder-empty",
        f"{folder} holds no samples",
        why="there is no .npz, .npy, picture or recording in it",
        hint="files are recognised by their suffix: "
        f"{', '.join(sorted(SUFFIXES))}; {', '.join(sorted(RECORDING_SUFFIXES))}",
    )
