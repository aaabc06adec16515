"""Samples from a function of the user's: `package.module:function` or `file.py:function`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgepack.data.fit import (
    LABELS,
    check_dtype,
    check_feed,
    check_labels,
    check_names,
    shape_error,
)
from edgepack.data.stream import Piece, SampleStream, add_array, exact_batch
from edgepack.errors import DataError, EdgepackError
from edgepack.files import expand_user
from edgepack.runtime.tensor import Tensor
from edgepack.spec.document import nearest

FUNCTION = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*)")
"""How a function is written. The last colon counts, so that a drive letter is no module."""


def open_function(
    spec: str, inputs: tuple[Tensor, ...], folders: Sequence[Path], *, same: bool = True
) -> SampleStream:
    """The samples that a function yields, called anew for each pass.

    The function takes no argument and returns an iterable of dicts, an array for each input
    by its name and optionally "label" or "labels". An array of one axis less than the input is
    a sample without its batch axis; one of the input's rank is a whole feed, and counts as so
    many samples where axis 0 is an axis that all inputs share.

    Args:
        spec: the function.
        inputs: the model's inputs.
        folders: what a relative path starts from, and where modules are looked for as well.
        same: refuse a pass that gives other samples than the first whole one did: the optimized
            model would be judged on others than the original.

    Raises:
        DataError: the function cannot be imported.
    """
    function = load_function(spec, folders)
    try:
        exact, common = exact_batch(inputs, spec), True
    except DataError:
        # Without a batch axis in common only whole feeds fit, and those are never gathered.
        exact, common = None, False

    first: list[bytes] = []

    def pieces(size: int) -> Iterator[Piece]:
        digest, found = hashlib.blake2b(), []
        for index, item in enumerate(_call(function, spec)):
            piece = _piece(item, inputs, f"{spec}, item {index}", common)
            if same:
                _add(digest, piece)
                found.append(digest.digest())
                if first and found[-1] != (first[index] if index < len(first) else b""):
                    raise _other_samples(spec, f"item {index} is not what it was")
            yield piece
        if first and len(found) < len(first):
            raise _other_samples(spec, f"{len(found)} items instead of {len(first)}")
        first[:] = first or found

    return SampleStream(spec, pieces, exact)


def _add(digest: Any, piece: Piece) -> None:
    labels = {} if piece.labels is None else {LABELS: piece.labels}
    for name, array in [*piece.inputs.items(), *labels.items()]:
        add_array(digest, name, array)


def _other_samples(spec: str, why: str) -> DataError:
    return DataError(
        "samples-function-changing",
        f"{spec} gives other samples each time that it is called",
        why=f"{why} in an earlier call",
        hint="draw random numbers from a generator with a fixed seed, made in the function, "
        "and keep nothing between the calls",
    )


def load_function(spec: str, folders: Sequence[Path]) -> Callable[[], Any]:
    """Import `package.module:function` or `path/to/file.py:function`.

    A relative path starts from the first folder. The module's own folder, or all of `folders` for
    a dotted name, can be imported from meanwhile.

    Raises:
        DataError: `samples-function-import` or `samples-function-missing`.
    """
    match = FUNCTION.fullmatch(spec)
    if match is None:
        raise DataError(
            "samples-function-import",
            f"{spec} does not name a function",
            why="a function is written module:function",
            hint="for example data.py:calibration",
        )
    module = _import(match["module"], spec, folders)
    function = getattr(module, match["name"], None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        near = nearest(match["name"], names)
        raise DataError(
            "samples-function-missing",
            f"{match['module']} has no function {match['name']}",
            why=f"its functions: {', '.join(n for n in names if n[0] != '_') or '-'}",
            hint=f"did you mean {near}?" if near else "define it, without arguments",
        )
    return function  # type: ignore[no-any-return]


def _import(name: str, spec: str, folders: Sequence[Path]) -> ModuleType:
    try:
        if not name.endswith(".py"):
            with _importable(folders):
                return importlib.import_module(name)
        path = (folders[0] / expand_user(name)).resolve()
        loader = importlib.util.spec_from_file_location(f"_samples_{path.stem}", path)
        if loader is None or loader.loader is None or not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        module = importlib.util.module_from_spec(loader)
        # Registered before it runs: dataclasses look their own module up there.
        sys.modules[loader.name] = module
        with _importable([path.parent]):
            loader.loader.exec_module(module)
        return module
    except Exception as error:  # whatever the user's module does when it is imported
        raise DataError(
            "samples-function-import",
            f"{name} cannot be imported",
            why=_describe(error),
            hint="give package.module:function with the package installed, "
            "or path/to/file.py:function",
        ) from error


@contextlib.contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    entries = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            sys.path.remove(entry)


def _call(function: Callable[[], Any], spec: str) -> Iterator[Any]:
    """What the function yields, its own errors turned into one that names its line."""
    try:
        items = function()
        if not isinstance(items, Iterable) or isinstance(items, (str, bytes, Mapping)):
            raise DataError(
                "samples-function-result",
                f"{spec} does not return an iterable of dicts",
                why=f"it returned {type(items).__name__}",
                hint='yield {"INPUT": array, "label": number} for each sample',
            )
        yield from items
    except EdgepackError:
        raise
    except Exception as error:  # whatever the user's function does
        raise DataError(
            "samples-function-failed",
            f"{spec} failed",
            why=_describe(error),
            hint="call it by itself and mend it",
        ) from error


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _piece(item: Any, inputs: tuple[Tensor, ...], where: str, common: bool) -> Piece:
    """One dict as a piece; `common`: the inputs share a batch axis at 0."""
    if not isinstance(item, Mapping):
        raise DataError(
            "samples-function-result",
            f"{where} is not a dict",
            why=f"it is {type(item).__name__}",
            hint='yield {"INPUT": array, "label": number} for each sample',
        )
    given = {str(name): np.asarray(value) for name, value in item.items()}
    names = {tensor.name for tensor in inputs}
    found = [given.pop(key) for key in ("label", LABELS) if key in given and key not in names]
    check_names(given, inputs, where)
    arrays = {t.name: _converted(given[t.name], t, where) for t in inputs}
    for tensor in inputs:
        if arrays[tensor.name].ndim not in (tensor.rank, tensor.rank - 1):
            raise shape_error(arrays[tensor.name].shape, tensor, where)
    whole = {t.name for t in inputs if arrays[t.name].ndim == t.rank}
    feed = {name: array if name in whole else array[None] for name, array in arrays.items()}
    # Whole feeds can be cut into samples only where axis 0 is one axis that all inputs share.
    lengths = {array.shape[0] for array in feed.values() if array.ndim}
    divisible = common and (not whole or (_named_batch(inputs) and len(lengths) == 1))
    count = feed[inputs[0].name].shape[0] if divisible else 1
    if count == 0:
        raise shape_error(feed[inputs[0].name].shape, inputs[0], where)
    labels = np.atleast_1d(found[0]) if found else None
    if labels is not None:
        check_labels(labels, count, where)
    shapes = {name: array.shape for name, array in feed.items()}
    check_feed(shapes, inputs, where, any_batch=divisible)
    return Piece(feed, labels, count, divisible)


def _converted(array: np.ndarray, tensor: Tensor, where: str) -> np.ndarray:
    check_dtype(array.dtype, tensor, where)
    return array.astype(tensor.dtype, copy=False)


def _named_batch(inputs: tuple[Tensor, ...]) -> bool:
    """Whether axis 0 is the same axis in all inputs, and one that is the batch by its name."""
    dims = {tensor.shape[0] if tensor.rank else None for tensor in inputs}
    dim = next(iter(dims))
    return len(dims) == 1 and (isinstance(dim, int) or (dim is not None and "batch" in dim.lower()))
