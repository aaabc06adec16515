"""Samples that are files: each is prepared as a whole, and labelled by its folder or a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgepack.data.fit import check_dtype, check_feed, shapes_of
from edgepack.data.layouts.class_folders import list_class_folders, read_class_folders
from edgepack.data.layouts.class_names import Classes
from edgepack.data.layouts.labels_csv import LABEL_FILE, read_labels_csv
from edgepack.data.layouts.picture_set import PictureSet
from edgepack.data.raw.prepare import prepare, read_file
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor


def list_files(folder: Path, suffixes: frozenset[str] | None = None) -> tuple[Path, ...]:
    """Return the files in a folder and its subfolders, in the order of their paths.

    Args:
        folder: the folder.
        suffixes: of the files, in lower case; None for all but `labels.csv`.
    """
    files = []
    for path in folder.rglob("*"):
        if not path.is_file() or (suffixes is not None and path.suffix.lower() not in suffixes):
            continue
        if suffixes is None and path == folder / LABEL_FILE:
            continue
        # Hidden entries are skipped at every level: a dataset from macOS holds ._one.wav beside
        # one.wav, and a checkout may hold files below .git.
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            files.append(path)
    return tuple(sorted(files))


def open_files(
    folder: Path,
    paths: Sequence[Path],
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing,
    *,
    origin: str,
    classes: Classes | None = None,
) -> SampleStream:
    """Open files as samples, with labels from `labels.csv` or from class folders.

    Args:
        folder: base of the relative paths in `labels.csv`, and of the class folders.
        paths: the files, in order.
        inputs: the model's inputs.
        preprocessing: conversion of a file's contents to these inputs.
        origin: description of the source for the report.
        classes: of the model.

    Raises:
        DataError: the labels do not match the files.
    """
    labels = _label_files(folder, tuple(paths), classes or Classes())
    exact = exact_batch(inputs, origin)

    def pieces(size: int) -> Iterator[Piece]:
        for index, path in enumerate(paths):
            where = path.relative_to(folder).as_posix()
            data = read_file(path)
            feed = prepare(preprocessing, data, where)
            for tensor in inputs:
                check_dtype(feed[tensor.name].dtype, tensor, where)
            check_feed(shapes_of(feed), inputs, where, any_batch=True)
            label = None
            if labels.classes is not None:
                label = labels.classes[index : index + 1]
            yield Piece(feed, label, 1, divisible=True, raw=(data,))

    return SampleStream(
        origin,
        pieces,
        exact,
        labels.notes,
        preprocessing=preprocessing,
        class_names=labels.class_names,
    )


def _label_files(folder: Path, paths: tuple[Path, ...], classes: Classes) -> PictureSet:
    if (folder / LABEL_FILE).exists():
        return read_labels_csv(folder, paths, classes)
    names = list_class_folders(folder, paths)
    if names and classes.folders:
        return read_class_folders(folder, paths, names, classes)
    return PictureSet("files", folder, paths, class_names=classes.names)
