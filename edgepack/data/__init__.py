"""Calibration, evaluation and training samples, read as streams.

`open_samples` is the only entry point. The kind of source is detected from the contents of the
path, not from the suffix of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack.data.arrays import infer_tensors, open_arrays
from edgepack.data.folder import array_shards, open_folder
from edgepack.data.function import FUNCTION, load_object, open_function
from edgepack.data.lint import LintReport, lint
from edgepack.data.random import random_samples
from edgepack.data.samples import Batch, Samples
from edgepack.data.values import PythonSamples, infer_values, open_value
from edgepack.errors import DataError
from edgepack.files import expand_user
from edgepack.runtime.preprocess.kinds import Preprocessing
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

FORMS = (
    "samples are a .npz or .npy file, a folder of them, a folder of pictures, "
    "or package.module:function"
)


def open_samples(
    spec: str | PythonSamples,
    inputs: tuple[Tensor, ...],
    *,
    preprocessing: Preprocessing | None = None,
    base: Path = Path(),
    search: Path = Path(),
    same: bool = True,
) -> Samples:
    """Open samples that fit a model, as a stream that can be read any number of times.

    Args:
        spec: one of
            a `.npz` file, one array per input and optionally `labels`;
            a `.npy` file, for a model with one input;
            a folder of such files, read in the order of their names;
            a folder of pictures, with an optional `labels.csv` (`file,label`);
            `package.module:name` or `path/to/file.py:name`, a function without arguments that
            is called again for each pass, or an object such as a DataLoader, see `open_value`;
            the same from Python, as `PythonSamples`.
        inputs: the model's inputs.
        preprocessing: conversion of raw samples to the inputs: a `Picture` for pictures.
        base: folder that relative paths and modules are resolved against.
        search: second folder to import modules from, such as the manifest's.
        same: refuse a function that yields different samples in a later pass. Training samples
            may differ between passes.

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
    if isinstance(spec, PythonSamples):
        return open_value(spec.value, inputs, origin=spec.origin, same=same)
    path = _locate(spec, base)
    if path is None:
        return open_function(spec, inputs, (base, search), same=same)
    if path.is_dir():
        return open_folder(path, inputs, preprocessing, origin=spec)
    return open_arrays((path,), inputs, origin=spec)


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
        fixed; None for pictures, which carry no shapes, and for an empty source.

    Raises:
        DataError: the source does not exist or cannot be read; `samples-ambiguous` if an item of
            a function may be one sample or a batch.
    """
    if isinstance(spec, PythonSamples):
        return infer_values(spec.value, names, spec.origin)
    path = _locate(spec, base)
    if path is None:
        return infer_values(load_object(spec, (base, search)), names, spec)
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
    "Batch",
    "LintReport",
    "Picture",
    "PythonSamples",
    "Samples",
    "check_there",
    "infer_inputs",
    "lint",
    "open_samples",
    "random_samples",
]
