"""Calibration, evaluation and training samples, read as streams.

`open_samples` is the only entry point. The kind of source is detected from the contents of the
path, not from the suffix of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgepack.data.arrays import infer_tensors, open_arrays
from edgepack.data.folder import array_shards, empty_folder, open_shards, refuse_mixed
from edgepack.data.layouts.class_names import Classes, read_class_file
from edgepack.data.layouts.find import (
    ANNOTATION_SUFFIXES,
    find_annotations,
    is_divided,
    open_layout,
)
from edgepack.data.layouts.picture_set import PictureSet
from edgepack.data.lint import LintReport, lint
from edgepack.data.own_code import make_code
from edgepack.data.python.function import FUNCTION, load_object, open_function
from edgepack.data.python.values import PythonSamples, infer_values, open_value
from edgepack.data.random import random_samples
from edgepack.data.raw.files import list_files, open_files
from edgepack.data.raw.pictures import describe_picture, open_pictures
from edgepack.data.raw.recordings import SUFFIXES as RECORDING_SUFFIXES
from edgepack.data.raw.recordings import AudioOptions, open_recordings, read_audio
from edgepack.data.raw.recordings import describe as describe_audio
from edgepack.data.roles import find_role
from edgepack.data.samples import Batch, Samples
from edgepack.data.split import Split, divide_pictures, divide_stream, select_stream
from edgepack.data.stream import SampleStream
from edgepack.data.text.texts import SUFFIXES as TEXT_SUFFIXES
from edgepack.data.text.texts import open_texts
from edgepack.data.text.tokenizer import TextOptions, read_text
from edgepack.data.text.tokenizer import describe as describe_text
from edgepack.errors import DataError
from edgepack.files import expand_user
from edgepack.runtime.preprocess.code import Code
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

FORMS = (
    "samples are a .npz or .npy file, a folder of them, a folder of pictures or recordings, "
    "a .txt, .csv or .jsonl of texts, a COCO .json or YOLO data.yaml, or package.module:function"
)


def open_samples(
    spec: str | PythonSamples,
    inputs: tuple[Tensor, ...],
    *,
    preprocessing: Preprocessing | None = None,
    base: Path = Path(),
    search: Path = Path(),
    role: str = "evaluation",
    classes: Classes | None = None,
    split: Split | None = None,
    columns: TextOptions | None = None,
) -> Samples:
    """Open samples that fit a model, as a stream that can be read any number of times.

    Args:
        spec: one of
            a `.npz` file, one array per input and optionally `labels`;
            a `.npy` file, for a model with one input;
            a folder of such files, read in the order of their names;
            a folder of pictures, labelled by an optional `labels.csv` (`file,label`), by one
            subfolder for each class, or by annotations of COCO or YOLO;
            such annotations: a `.json` or `data.yaml`;
            a folder of recordings, labelled by a `labels.csv` or by class folders;
            a `.txt` with one text per line, or a table of texts: `.csv`, `.tsv`, `.jsonl`;
            a folder with one of these for each role, such as `train` and `val`;
            `package.module:name` or `path/to/file.py:name`, a function without arguments that
            is called again for each pass, or an object such as a DataLoader, see `open_value`;
            the same from Python, as `PythonSamples`.
        inputs: the model's inputs.
        preprocessing: conversion of raw samples to the inputs: a `Picture` for pictures, a `Text`
            for texts, an `Audio` for recordings, or a `Code` for files or texts of any kind.
        base: folder that relative paths and modules are resolved against.
        search: second folder to import modules from, such as the manifest's.
        role: "calibration", "evaluation" or "training". Only for training, a function may yield
            different samples in a later pass.
        classes: of the model; None if they are not known.
        split: division of the samples into those for evaluation and all others; None if the
            source holds the samples of the role.
        columns: names of the columns of a table of texts.

    Labels are optional. Among training samples, a class of -1 or a value of NaN marks a sample
    without a label.

    An array of an input's rank holds samples along its axis 0, the model's batch axis; an
    array of one axis more holds one complete feed in each `array[i]`.

    Raises:
        DataError: the source does not exist, cannot be read, or does not fit the inputs.
    """
    # For a model with one input x:float32:batch,3,224,224:
    #   data.npz with x of (64, 3, 224, 224)     64 samples, gathered into batches
    #   data.npz with x of (8, 4, 3, 224, 224)   8 complete feeds of 4 samples each
    #   data.py:calibration                      one dict per sample: {"x": ..., "label": 3}
    same = role != "training"
    if isinstance(spec, PythonSamples):
        stream = open_value(spec.value, inputs, origin=spec.origin, same=same)
        return _split_stream(stream, split, role)
    path = _locate(spec, base)
    if path is None:
        stream = open_function(spec, inputs, (base, search), same=same)
        return _split_stream(stream, split, role)
    # photos/train and photos/val are two sources; photos/cat and photos/dog are one.
    path = _find_part(path, role)
    shards = array_shards(path) if path.is_dir() else ()
    if shards:
        stream = open_shards(path, shards, inputs, origin=spec)
        return _split_stream(stream, split, role)
    classes = classes or Classes()
    # Before pictures: code of the user's own takes files of any kind, pictures among them.
    raw = _open_raw(path, inputs, preprocessing, spec, classes, columns)
    if raw is not None:
        return _split_stream(raw, split, role)
    pictures = open_layout(path, role, classes)
    if pictures is not None:
        pictures = _split_pictures(pictures, split, role)
        origin = f"{spec} ({len(pictures.paths)} {pictures.layout})"
        return open_pictures(pictures, inputs, preprocessing, origin=origin)
    if path.is_dir():
        raise empty_folder(path)
    return _split_stream(open_arrays((path,), inputs, origin=spec), split, role)


def _open_raw(
    path: Path,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    origin: str,
    classes: Classes,
    columns: TextOptions | None,
) -> SampleStream | None:
    """Open texts, recordings, or files for code of the user's own; None for other samples."""
    if path.is_file():
        if path.suffix.lower() not in TEXT_SUFFIXES:
            return None
        return open_texts(
            path, inputs, preprocessing, origin=origin, columns=columns, classes=classes
        )
    if isinstance(preprocessing, Code):
        files = list_files(path)
        if not files:
            return None
        origin = f"{origin} ({len(files):,} files)"
        return open_files(path, files, inputs, preprocessing, origin=origin, classes=classes)
    recordings = list_files(path, RECORDING_SUFFIXES)
    if not recordings:
        return None
    refuse_mixed(path, recordings)
    return open_recordings(path, recordings, inputs, preprocessing, origin=origin, classes=classes)


def find_kind(spec: str | PythonSamples, base: Path = Path()) -> str:
    """Return the kind of raw samples, "text", "audio" or "picture"; "" for others.

    Raises DataError `samples-not-found` for a file or folder that does not exist.
    """
    if isinstance(spec, PythonSamples):
        return ""
    path = _locate(spec, base)
    if path is None:
        return ""
    path = _find_part(path, "evaluation")
    if path.is_dir():
        if list_files(path, RECORDING_SUFFIXES):
            return "audio"
        return "" if array_shards(path) else "picture"
    if path.suffix.lower() in TEXT_SUFFIXES:
        return "text"
    # Annotations of COCO, and data.yaml of YOLO.
    return "picture" if path.suffix.lower() in ANNOTATION_SUFFIXES else ""


def has_parts(spec: str | PythonSamples, base: Path = Path()) -> bool:
    """Return True if samples have separate parts for calibration and evaluation.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    if isinstance(spec, PythonSamples):
        return False
    path = _locate(spec, base)
    return path is not None and is_divided(path)


def _find_part(path: Path, role: str) -> Path:
    """Return the part of a folder for a role, or the path itself if it has no such parts."""
    # A data.yaml beside train/ and valid/ names both of them.
    if path.is_dir() and find_annotations(path, role) is None:
        return find_role(path, role) or path
    return path


def _split_pictures(pictures: PictureSet, split: Split | None, role: str) -> PictureSet:
    if split is None:
        return pictures
    # Both roles divide the same pictures alike, so that no picture is in both parts.
    division = divide_pictures(pictures, split)
    chosen = pictures.select(division.indices(role))
    return replace(chosen, notes=(*chosen.notes, division.describe(split)))


def _split_stream(stream: SampleStream, split: Split | None, role: str) -> SampleStream:
    if split is None:
        return stream
    division = divide_stream(stream, split)
    chosen = select_stream(stream, division.evaluation, role)
    return replace(chosen, notes=(*chosen.notes, division.describe(split)))


def infer_inputs(
    spec: str | PythonSamples,
    base: Path = Path(),
    *,
    search: Path = Path(),
    names: Sequence[str] = (),
) -> tuple[Tensor, ...] | None:
    """Infer a model's inputs from samples, for builds that declare none.

    Args:
        spec: as `open_samples` takes it.
        base: folder that relative paths and modules are resolved against.
        search: second folder to import modules from.
        names: of the parameters of the model's forward, for samples without names.

    Returns:
        One tensor for each array except the labels, its axis 0 named "batch" and the others
        fixed; None for raw samples, which carry no shapes, and for an empty source.

    Raises:
        DataError: the source does not exist or cannot be read; `samples-ambiguous` if an item of
            a function may be one sample or a batch.
    """
    if isinstance(spec, PythonSamples):
        return infer_values(spec.value, names, spec.origin)
    path = _locate(spec, base)
    if path is None:
        return infer_values(load_object(spec, (base, search)), names, spec)
    path = _find_part(path, "calibration")
    if path.suffix.lower() in (*TEXT_SUFFIXES, *ANNOTATION_SUFFIXES):
        return None
    if path.is_dir():
        shards = array_shards(path)
        if not shards:
            return None
        path = shards[0]
    return infer_tensors(path)


def check_there(spec: str | PythonSamples, base: Path = Path()) -> None:
    """Raise DataError `samples-not-found` for a file or folder that does not exist."""
    if not isinstance(spec, PythonSamples):
        _locate(spec, base)


def _locate(spec: str, base: Path) -> Path | None:
    """Return the file or folder that `spec` names, or None if it names a function."""
    path = base / expand_user(spec)
    if path.exists():
        return path
    # data.py:calibration is a function unless a file has exactly this name.
    if FUNCTION.fullmatch(spec):
        return None
    siblings: list[str] = []
    if path.parent.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()]
    near = nearest(path.name, siblings)
    suggestion = f"; did you mean {near}?" if near else ""
    raise DataError(
        "samples-not-found",
        f"there are no samples at {spec}",
        why=f"{path} does not exist{suggestion}",
        hint=FORMS,
    )


__all__ = [
    "AudioOptions",
    "Batch",
    "Classes",
    "LintReport",
    "Picture",
    "PythonSamples",
    "Samples",
    "Split",
    "TextOptions",
    "check_there",
    "describe_audio",
    "describe_picture",
    "describe_text",
    "find_kind",
    "find_role",
    "has_parts",
    "infer_inputs",
    "lint",
    "make_code",
    "open_samples",
    "random_samples",
    "read_audio",
    "read_class_file",
    "read_text",
]
