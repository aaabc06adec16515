"""Checks that arrays fit a model's inputs, and errors that name the mismatch.

Every source of samples uses these functions, so the same fault has the same code for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from edgepack.errors import DataError
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec.suggestions import nearest
from edgepack.spec.tensors import names_of

# Name of the array that holds labels, unless the model has an input of that name.
LABELS = "labels"

# Transpositions of pictures stored in the other layout, with the words for the message.
_MOVES: dict[tuple[int, ...], str] = {
    (0, 3, 1, 2): " (NHWC, the model takes NCHW)",
    (0, 2, 3, 1): " (NCHW, the model takes NHWC)",
}


def check_names(names: Collection[str], inputs: tuple[Tensor, ...], where: str) -> None:
    """Check that every input has an array and every array an input; labels are not in `names`.

    Raises:
        DataError: `samples-missing-input` or `samples-extra-input`.
    """
    expected = names_of(inputs)
    missing = [name for name in expected if name not in names]
    extra = sorted(name for name in names if name not in expected)
    listing = f"the model's inputs: {', '.join(expected)}; found: {', '.join(sorted(names)) or '-'}"
    if missing:
        near = nearest(missing[0], extra)
        # One array too many and one too few are the same array, however different their names.
        if not near and len(extra) == len(missing) == 1:
            near = extra[0]
        raise DataError(
            "samples-missing-input",
            f"{where} has no array for the input {missing[0]}",
            why=listing,
            hint=f"rename {near} to {missing[0]}" if near else f"add an array {missing[0]}",
        )
    if extra:
        near = nearest(extra[0], [*expected, LABELS])
        hint = "remove it"
        if near:
            hint = f"did you mean {near}? Otherwise remove it"
        raise DataError(
            "samples-extra-input",
            f"{where} has an array {extra[0]} that is not an input of the model",
            why=listing,
            hint=hint,
        )


def check_dtype(dtype: np.dtype, tensor: Tensor, where: str) -> bool:
    """Return True if values of `dtype` must be widened for the input, which only integers may be.

    Byte order is ignored.

    Raises:
        DataError: `samples-object-array`, or `samples-dtype` if the conversion loses values.
    """
    # For an input of int64: int64 gives False, int32 gives True, float32 raises. For an input of
    # float32, uint8 raises too: it is most often a picture that was not normalised.
    refuse_objects(dtype, tensor.name, where)
    native, expected = dtype.newbyteorder("="), np.dtype(tensor.dtype)
    if native == expected:
        return False
    if native.kind in "iu" and expected.kind in "iu" and np.can_cast(native, expected, "safe"):
        return True
    if native.kind in "iu" and expected.kind == "f":
        hint = f'normalise as in training, then save with .astype("{tensor.dtype}")'
    else:
        hint = f'convert the array: array.astype("{tensor.dtype}")'
    raise DataError(
        "samples-dtype",
        f"{where}: {tensor.name} has the wrong element type",
        why=f"it is {native.name}; the model takes {tensor.dtype}",
        hint=hint,
    )


def refuse_objects(dtype: np.dtype, name: str, where: str) -> None:
    """Refuse arrays of Python objects: they are pickles, which can run code.

    Raises:
        DataError: `samples-object-array`.
    """
    if dtype.hasobject:
        raise DataError(
            "samples-object-array",
            f"{where}: {name} is an array of Python objects",
            why="reading it would unpickle it, and a pickle can run any code",
            hint="save numbers of one type and shape: numpy.stack(list_of_arrays)",
        )


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array, for `check_feed`."""
    return {name: array.shape for name, array in arrays.items()}


def check_feed(
    shapes: Mapping[str, tuple[int, ...]],
    inputs: tuple[Tensor, ...],
    where: str,
    *,
    any_batch: bool = False,
    stored: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Check that the shapes of one feed fit the inputs and agree on axes of the same name.

    Args:
        shapes: shape of each array by input name, batch axis included.
        inputs: the model's inputs.
        where: the source that is checked, as the start of a sentence.
        any_batch: skip axis 0, the batch axis, since samples are gathered into batches later.
        stored: shape of each complete array in the file, for the message.

    Raises:
        DataError: `samples-shape`, `samples-layout` or `samples-axis-sizes`.
    """
    # Inputs ids:int64:batch,length and mask:int64:batch,length take (4, 128) and (4, 128); with
    # a mask of (4, 64) the axis `length` would be both 128 and 64.
    first = int(any_batch)
    bound: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        shape = shapes[tensor.name]
        if not _fits(shape, tensor.shape, first):
            array = None
            if stored is not None:
                array = stored[tensor.name]
            raise shape_error(shape, tensor, where, first, array)
        for size, dim in zip(shape[first:], tensor.shape[first:], strict=True):
            if isinstance(dim, str) and bound.setdefault(dim, (size, tensor.name))[0] != size:
                raise DataError(
                    "samples-axis-sizes",
                    f"{where}: the axis {dim} has two sizes in one feed",
                    why=f"{bound[dim][0]} in {bound[dim][1]}, {size} in {tensor.name}",
                    hint=f"use the same size along {dim} in both inputs",
                )


def _fits(shape: tuple[int, ...], dims: tuple[Dim, ...], first: int = 0) -> bool:
    """Compare a shape with an input's; a dynamic axis may be empty, as in a fresh KV cache."""
    # (4, 0, 64) fits (batch, length, 64); (4, 0, 32) does not.
    if len(shape) != len(dims):
        return False
    for size, dim in zip(shape[first:], dims[first:], strict=True):
        if isinstance(dim, int) and size != dim:
            return False
    return True


def shape_error(
    shape: tuple[int, ...],
    tensor: Tensor,
    where: str,
    first: int = 0,
    stored: tuple[int, ...] | None = None,
) -> DataError:
    """Return the error for a shape that does not fit; `samples-layout` if a transpose helps.

    Args:
        shape: shape of the feed.
        tensor: the input.
        where: the source, as the start of a sentence.
        first: first axis that must fit.
        stored: shape of the complete array that the feed is from; None for a feed of its own.
    """
    order = _reordering(shape, tensor.shape, first)
    why = _compare_shapes(shape, tensor, first, stored, _MOVES.get(order or (), ""))
    if order is not None:
        if stored is not None and len(stored) > tensor.rank:
            # Complete feeds have an axis before those of the feed, which stays where it is.
            order = (0, *(axis + 1 for axis in order))
        return DataError(
            "samples-layout",
            f"{where}: the axes of {tensor.name} are in another order than the model's",
            why=why,
            hint=f"reorder the axes, keeping the batch at 0: transpose{order}",
        )
    sample, feed = _format_shape(tensor.shape[1:]), _format_shape(tensor.shape)
    hint = f"give single samples of {sample}, or complete feeds of {feed}"
    if stored is not None:
        # For an input of (batch, 3, 8, 8): (samples, 3, 8, 8), and (feeds, batch, 3, 8, 8).
        rows = _format_shape(("samples", *tensor.shape[1:]))
        feeds = _format_shape(("feeds", *tensor.shape))
        hint = f"store an array of {rows}; {feeds} holds complete feeds"
        if not tensor.shape:
            hint = f"store an array of {feeds}"
    return DataError(
        "samples-shape",
        f"{where}: {tensor.name} does not have the model's shape",
        why=why,
        hint=hint,
    )


def _compare_shapes(
    shape: tuple[int, ...],
    tensor: Tensor,
    first: int,
    stored: tuple[int, ...] | None,
    move: str,
) -> str:
    """Return both shapes in words; `move` names the two layouts.

    For example "the array image is (10, 3, 8, 8): 10 samples of (3, 8, 8); the model takes samples
    of (1, 8, 8)".
    """
    sample, feed = _format_shape(tensor.shape[1:]), _format_shape(tensor.shape)
    if stored is None:
        if first:
            return f"its samples are {_format_shape(shape[1:])}{move}; the model takes {sample}"
        return f"its shape is {_format_shape(shape)}{move}; the model takes {feed}"
    text = f"the array {tensor.name} is {_format_shape(stored)}"
    if len(stored) == tensor.rank + 1:
        rows = f"{stored[0]} feeds of {_format_shape(stored[1:])}"
        return f"{text}: {rows}{move}; the model takes feeds of {feed}"
    if stored and len(stored) == tensor.rank:
        text += f": {stored[0]} samples of {_format_shape(stored[1:])}"
    return f"{text}{move}; the model takes samples of {sample}"


def _format_shape(shape: tuple[Dim, ...]) -> str:
    # ("batch", 3) is "(batch, 3)", and (3,) is "(3,)".
    if len(shape) == 1:
        return f"({shape[0]},)"
    return f"({', '.join(map(str, shape))})"


def _reordering(
    shape: tuple[int, ...], dims: tuple[Dim, ...], first: int
) -> tuple[int, ...] | None:
    """Return the transposition that makes `shape` fit, keeping axis 0; None if there is none.

    Moving the channels is tried first, since that is nearly always the cause.
    """
    # (8, 224, 224, 3) for an input of (batch, 3, 224, 224) gives (0, 3, 1, 2). Ranks above 5 are
    # not searched, since the number of orders grows as a factorial.
    rank = len(dims)
    if len(shape) != rank or not 3 <= rank <= 5 or 0 in shape:
        return None
    channels = ((rank - 1, *range(1, rank - 1)), (*range(2, rank), 1))
    for tail in itertools.chain(channels, itertools.permutations(range(1, rank))):
        order = (0, *tail)
        if order != tuple(range(rank)) and _fits(tuple(shape[i] for i in order), dims, first):
            return order
    return None


def check_labels(labels: np.ndarray, count: int, where: str) -> None:
    """Check that there is one label for each sample: a number, an array of them, or a text.

    Raises:
        DataError: `samples-labels-type` or `samples-labels-count`.
    """
    check_label_header(labels.shape, labels.dtype, count, where)


def plain_texts(labels: np.ndarray) -> np.ndarray:
    """Return texts that are Python objects, or numpy's StringDType, as an array of `str`.

    Such an array is stored without a pickle. Other labels are returned unchanged.
    """
    if labels.dtype.kind == "T":
        return labels.astype(str)
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
        return labels.astype(str)
    return labels


def check_label_header(shape: tuple[int, ...], dtype: np.dtype, count: int, where: str) -> None:
    """Check labels as `check_labels` does, from their shape and type alone."""
    refuse_objects(dtype, LABELS, where)
    if dtype.kind not in "iufbU":
        raise DataError(
            "samples-labels-type",
            f"{where}: the labels are neither numbers nor texts",
            why=f"their type is {dtype}",
            hint="store the index of the class, counted from 0, as an integer, or the text to read",
        )
    if not shape or shape[0] != count:
        raise DataError(
            "samples-labels-count",
            f"{where}: there is not one label for each sample",
            why=f"{shape[0] if shape else 'a single'} label(s) for {count} sample(s)",
            hint="store labels along axis 0, in the order of the samples",
        )
