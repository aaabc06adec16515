"""Samples from a user's function: `package.module:function` or `file.py:function`."""

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

import numpy as np

from edgepack.data.fit import (
    LABELS,
    check_dtype,
    check_feed,
    check_labels,
    check_names,
    shape_error,
    shapes_of,
)
from edgepack.data.stream import Digest, Piece, SampleStream, add_array, exact_batch
from edgepack.errors import DataError, EdgepackError
from edgepack.files import expand_user
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest
from edgepack.spec.tensors import names_of

# MODULE:NAME, split at the last colon, so that the colon of a drive letter is part of the path.
FUNCTION = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*)")


def open_function(
    spec: str, inputs: tuple[Tensor, ...], folders: Sequence[Path], *, same: bool = True
) -> SampleStream:
    """Open the samples that a function yields; the function is called again for each pass.

    The function takes no argument and returns an iterable of dicts with an array for each input
    by its name and optionally "label" or "labels". An array of one axis less than the input is
    a sample without its batch axis. An array of the input's rank is a complete feed; it counts as
    several samples if axis 0 is the batch axis of all inputs.

    Args:
        spec: the function.
        inputs: the model's inputs.
        folders: import path of the modules; relative paths start from the first folder.
        same: refuse a pass that yields different samples than the first complete pass did, since
            the optimized model would be evaluated on other samples than the original.

    Raises:
        DataError: the function cannot be imported.
    """
    function = load_function(spec, folders)
    try:
        exact, common = exact_batch(inputs, spec), True
    except DataError:
        # Without a common batch axis only complete feeds fit, and those are never gathered.
        exact, common = None, False

    # Running digests of the first complete pass: first[i] covers the items 0 to i, so that a
    # later pass fails at the first item that differs and not at its end.
    first: list[bytes] = []

    def pieces(size: int) -> Iterator[Piece]:
        digest, digests = hashlib.blake2b(), []
        for index, item in enumerate(_call(function, spec)):
            piece = _piece(item, inputs, f"{spec}, item {index}", common)
            if same:
                _add(digest, piece)
                digests.append(digest.digest())
                if first and digests[-1:] != first[index : index + 1]:
                    raise _changing_samples(spec, f"item {index} differs from")
            yield piece
        if first and len(digests) < len(first):
            raise _changing_samples(spec, f"{len(digests)} items, after {len(first)} in")
        # A pass that the caller abandons never gets here, so `first` always covers all items.
        first[:] = first or digests

    return SampleStream(spec, pieces, exact)


def _add(digest: Digest, piece: Piece) -> None:
    for name, array in piece.inputs.items():
        add_array(digest, name, array)
    if piece.labels is not None:
        add_array(digest, LABELS, piece.labels)


def _changing_samples(spec: str, difference: str) -> DataError:
    return DataError(
        "samples-function-changing",
        f"{spec} yields different samples each time it is called",
        why=f"{difference} an earlier call",
        hint="draw random numbers from a generator with a fixed seed, created in the function, "
        "and keep no state between calls",
    )


def load_function(spec: str, folders: Sequence[Path]) -> Callable[..., object]:
    """Import `package.module:function` or `path/to/file.py:function`.

    A relative path starts from the first folder. During the import `sys.path` begins with the
    file's own folder, or with all of `folders` for a dotted name.

    Raises:
        DataError: `samples-function-import` or `samples-function-missing`.
    """
    match = FUNCTION.fullmatch(spec)
    if match is None:
        raise DataError(
            "samples-function-import",
            f"{spec} does not name a function",
            why="the form is module:function",
            hint="for example data.py:calibration",
        )
    module = _import(match["module"], spec, folders)
    function = getattr(module, match["name"], None)
    if not callable(function):
        names, public = [], []
        for name, value in vars(module).items():
            if callable(value):
                names.append(name)
                if not name.startswith("_"):
                    public.append(name)
        near = nearest(match["name"], names)
        hint = "define it as a function without arguments"
        if near:
            hint = f"did you mean {near}?"
        raise DataError(
            "samples-function-missing",
            f"{match['module']} has no function {match['name']}",
            why=f"its functions: {', '.join(public) or '-'}",
            hint=hint,
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
        # Register the module before it runs: dataclasses look up their own module there.
        sys.modules[loader.name] = module
        with _importable([path.parent]):
            loader.loader.exec_module(module)
        return module
    except Exception as error:  # the user's module may raise anything on import
        raise DataError(
            "samples-function-import",
            f"{name} cannot be imported",
            why=_describe(error),
            hint="use package.module:function with the package installed, "
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


def _call(function: Callable[[], object], spec: str) -> Iterator[object]:
    """Yield the function's items; convert its exceptions to one error that names the line."""
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
    except Exception as error:  # the user's function may raise anything
        raise DataError(
            "samples-function-failed",
            f"{spec} failed",
            why=_describe(error),
            hint="call the function outside edgepack to reproduce the error",
        ) from error


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error}"
    if not frames:
        return text
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"


# For an input x:float32:batch,3,32,32:
#   {"x": (3, 32, 32), "label": 5}           one sample; fed as (1, 3, 32, 32)
#   {"x": (8, 3, 32, 32), "labels": (8,)}    8 samples, which may be cut and joined with others
# For inputs x:float32:batch,3 and state:float32:1,64, which share no batch axis:
#   {"x": (8, 3), "state": (1, 64)}          a complete feed, which counts as one sample
def _piece(item: object, inputs: tuple[Tensor, ...], where: str, common: bool) -> Piece:
    """Convert a dict to a piece.

    Args:
        item: as the function yields it.
        inputs: the model's inputs.
        where: function and item, as the start of a sentence.
        common: the inputs share a batch axis at 0.
    """
    if not isinstance(item, Mapping):
        raise DataError(
            "samples-function-result",
            f"{where} is not a dict",
            why=f"it is {type(item).__name__}",
            hint='yield {"INPUT": array, "label": number} for each sample',
        )
    values = {str(name): np.asarray(value) for name, value in item.items()}
    labels = _take_labels(values, inputs)
    check_names(values, inputs, where)
    for tensor in inputs:
        check_dtype(values[tensor.name].dtype, tensor, where)
    feed, has_complete = {}, False
    for tensor in inputs:
        array = values[tensor.name].astype(tensor.dtype, copy=False)
        if array.ndim == tensor.rank:
            has_complete = True
        elif array.ndim == tensor.rank - 1:
            array = array[None]
        else:
            raise shape_error(array.shape, tensor, where)
        feed[tensor.name] = array
    # A complete feed can be cut into samples only if axis 0 is the batch axis of all inputs.
    lengths = {array.shape[:1] for array in feed.values()} - {()}
    divisible = common and (not has_complete or (_has_named_batch(inputs) and len(lengths) == 1))
    count = 1
    if divisible:
        count = feed[inputs[0].name].shape[0]
    if count == 0:
        raise shape_error(feed[inputs[0].name].shape, inputs[0], where)
    if labels is not None:
        labels = np.atleast_1d(labels)
        # The label of a single sample, though not that of a batch of one, may have a shape of its
        # own, such as (4,).
        is_batch = divisible and has_complete
        if count == 1 and not is_batch and len(labels) != 1:
            labels = labels[None]
        check_labels(labels, count, where)
    check_feed(shapes_of(feed), inputs, where, any_batch=divisible)
    return Piece(feed, labels, count, divisible)


def _take_labels(values: dict[str, np.ndarray], inputs: tuple[Tensor, ...]) -> np.ndarray | None:
    """Remove "label" and "labels", unless inputs have these names; return the first of them."""
    labels = None
    for key in ("label", LABELS):
        if key in names_of(inputs):
            continue
        # Both are removed, so that check_names does not refuse the second.
        array = values.pop(key, None)
        if labels is None:
            labels = array
    return labels


def _has_named_batch(inputs: tuple[Tensor, ...]) -> bool:
    """Return True if axis 0 is the same axis in all inputs, and fixed or named like a batch."""
    # (batch, 3) and (batch, 64): True. (length, 3): False, since axis 0 may be a sequence.
    axes = {tensor.shape[:1] for tensor in inputs}
    axis = axes.pop()
    if axes or not axis:
        return False
    return isinstance(axis[0], int) or "batch" in axis[0].lower()
