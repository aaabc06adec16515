"""Calibration and evaluation samples, streamed: where they are read, and what they are.

`open_samples` is the one door; the kind of source is recognised from what is there, not from
the suffix of its name.
"""

from __future__ import annotations

from pathlib import Path

from edgepack.data.arrays import infer_tensors, open_arrays
from edgepack.data.folder import array_shards, open_folder
from edgepack.data.function import FUNCTION, open_function
from edgepack.data.lint import LintReport, lint
from edgepack.data.preprocessing import Preprocessing
from edgepack.data.random import random_samples
from edgepack.data.samples import Batch, Samples
from edgepack.errors import DataError
from edgepack.files import expand_user
from edgepack.runtime.tensor import Tensor
from edgepack.spec.document import nearest

FORMS = (
    "samples are a .npz or .npy file, a folder of them, a folder of pictures, "
    "or package.module:function"
)


def open_samples(
    spec: str,
    inputs: tuple[Tensor, ...],
    *,
    preprocessing: Preprocessing | None = None,
    base: Path = Path(),
    search: Path = Path(),
    same: bool = True,
) -> Samples:
    """Samples that fit a model, as a stream that can be read any number of times.

    Args:
        spec: one of
            a `.npz` file, one array per input and optionally `labels`;
            a `.npy` file, for a model with one input;
            a folder of such files, taken in the order of their names;
            a folder of pictures, with an optional `labels.csv` (`file,label`);
            `package.module:function` or `path/to/file.py:function`, a function without
            arguments that returns an iterable of dicts, called anew for each pass.
        inputs: the model's inputs.
        preprocessing: how a picture becomes an input; needed for a folder of pictures.
        base: the folder that a relative path or module is looked for in.
        search: a folder that a module is looked for in as well, as the manifest's.
        same: refuse a function that gives other samples in a later pass. Samples that are trained
            on may be drawn anew.

    Labels are optional. Among training samples a class of -1, or a value of NaN, says that this one
    has none.

    An array of an input's rank holds samples along its axis 0, the model's batch axis; an
    array of one axis more holds one whole feed in each `array[i]`.

    Raises:
        DataError: nothing is there, it cannot be read, or it does not fit the inputs.
    """
    path = _locate(spec, base)
    if path is None:
        return open_function(spec, inputs, (base, search), same=same)
    if path.is_dir():
        return open_folder(path, inputs, preprocessing, origin=spec)
    return open_arrays((path,), inputs, origin=spec)


def infer_inputs(spec: str, base: Path = Path()) -> tuple[Tensor, ...] | None:
    """The inputs that array samples were made for, where nothing else tells them.

    Returns:
        One tensor for each array but the labels, its axis 0 named "batch" and the others
        fixed; None for pictures and functions, which do not tell.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = _locate(spec, base)
    if path is None:
        return None
    if path.is_dir():
        shards = array_shards(path)
        return infer_tensors(shards[0]) if shards else None
    return infer_tensors(path)


def check_there(spec: str, base: Path = Path()) -> None:
    """Raise DataError `samples-not-found` where a file or folder is named that does not exist."""
    _locate(spec, base)


def _locate(spec: str, base: Path) -> Path | None:
    """The file or folder that `spec` names, or None where it names a function."""
    path = base / expand_user(spec)
    if path.exists():
        return path
    if FUNCTION.fullmatch(spec):
        return None
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    raise DataError(
        "samples-not-found",
        f"there are no samples at {spec}",
        why=f"{path} does not exist" + (f"; did you mean {near}?" if near else ""),
        hint=FORMS,
    )


__all__ = [
    "Batch",
    "LintReport",
    "Preprocessing",
    "Samples",
    "check_there",
    "infer_inputs",
    "lint",
    "open_samples",
    "random_samples",
]
