"""Whether arrays fit a model's inputs, and if not, what is wrong with them.

Every source of samples judges by these functions, so that the same fault has the same code
wherever the samples come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from edgepack.errors import DataError
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec.document import nearest

LABELS = "labels"
"""Name of the array that holds labels, unless the model has an input of that name."""


_MOVES: dict[tuple[int, ...], str] = {
    (0, 3, 1, 2): " (NHWC, the model takes NCHW)",
    (0, 2, 3, 1): " (NCHW, the model takes NHWC)",
}


def check_names(found: Collection[str], inputs: tuple[Tensor, ...], where: str) -> None:
    """Every input has an array, and every array (labels are not among `found`) an input.

    Raises:
        DataError: `samples-missing-input` or `samples-extra-input`.
    """
    wanted = [tensor.name for tensor in inputs]
    missing = [name for name in wanted if name not in found]
    extra = sorted(name for name in found if name not in wanted)
    listing = f"the model's inputs: {', '.join(wanted)}; found: {', '.join(sorted(found)) or '-'}"
    if missing:
        only = extra[0] if len(extra) == len(missing) == 1 else ""
        near = nearest(missing[0], extra) or only
        raise DataError(
            "samples-missing-input",
            f"{where} has no array for the input {missing[0]}",
            why=listing,
            hint=f"rename {near} to {missing[0]}" if near else f"add an array {missing[0]}",
        )
    if extra:
        near = nearest(extra[0], [*wanted, LABELS])
        raise DataError(
            "samples-extra-input",
            f"{where} has an array {extra[0]} that is no input of the model",
            why=listing,
            hint=(f"did you mean {near}? Otherwise " if near else "") + "leave it out",
        )


def check_dtype(dtype: np.dtype, tensor: Tensor, where: str) -> bool:
    """Whether values of `dtype` must be widened for the input; only integers are, losslessly.

    Byte order is no part of the question.

    Raises:
        DataError: `samples-object-array`, or `samples-dtype` where values would be changed.
    """
    refuse_objects(dtype, tensor.name, where)
    native, wanted = dtype.newbyteorder("="), np.dtype(tensor.dtype)
    if native == wanted:
        return False
    if native.kind in "iu" and wanted.kind in "iu" and np.can_cast(native, wanted, "safe"):
        return True
    if native.kind in "iu" and wanted.kind == "f":
        hint = f'normalise as in training, then save with .astype("{tensor.dtype}")'
    else:
        hint = f'convert before saving: array.astype("{tensor.dtype}")'
    raise DataError(
        "samples-dtype",
        f"{where}: {tensor.name} has the wrong element type",
        why=f"it is {native.name}; the model takes {tensor.dtype}",
        hint=hint,
    )


def refuse_objects(dtype: np.dtype, name: str, where: str) -> None:
    """Arrays of Python objects are pickles, which can run code: they are never read.

    Raises:
        DataError: `samples-object-array`.
    """
    if dtype.hasobject:
        raise DataError(
            "samples-object-array",
            f"{where}: {name} is an array of Python objects",
            why="reading it would unpickle, and a pickle can run any code",
            hint="save numbers of one type and shape: numpy.stack(list_of_arrays)",
        )


def check_feed(
    shapes: Mapping[str, tuple[int, ...]],
    inputs: tuple[Tensor, ...],
    where: str,
    *,
    any_batch: bool = False,
) -> None:
    """The shapes of one feed fit the inputs, and axes of the same name are of the same size.

    Args:
        shapes: by input name, batch axis included.
        inputs: the model's inputs.
        where: what is judged, as the start of a sentence.
        any_batch: the axes 0 are the batch, yet to be gathered to what the model takes.

    Raises:
        DataError: `samples-shape`, `samples-layout` or `samples-axis-sizes`.
    """
    first = 1 if any_batch else 0
    bound: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        shape = shapes[tensor.name]
        if not _fits(shape, tensor.shape, first):
            raise shape_error(shape, tensor, where, first)
        for size, dim in zip(shape[first:], tensor.shape[first:], strict=True):
            if isinstance(dim, str) and bound.setdefault(dim, (size, tensor.name))[0] != size:
                raise DataError(
                    "samples-axis-sizes",
                    f"{where}: the axis {dim} has two sizes in one feed",
                    why=f"{bound[dim][0]} in {bound[dim][1]}, {size} in {tensor.name}",
                    hint=f"give both inputs the same number along {dim}",
                )


def _fits(shape: tuple[int, ...], dims: tuple[Dim, ...], first: int = 0) -> bool:
    """Compare a shape with an input's; a dynamic axis may be empty, as in a fresh KV cache."""
    return len(shape) == len(dims) and all(
        size == dim or not isinstance(dim, int)
        for size, dim in zip(shape[first:], dims[first:], strict=True)
    )


def shape_error(shape: tuple[int, ...], tensor: Tensor, where: str, first: int = 0) -> DataError:
    """What to say of a shape that does not fit: `samples-layout` where reordering would help."""
    declared = f"({', '.join(map(str, tensor.shape))})"
    order = _reordering(shape, tensor.shape, first)
    if order is not None:
        return DataError(
            "samples-layout",
            f"{where}: the axes of {tensor.name} are in another order than the model's",
            why=f"its shape is {shape}{_MOVES.get(order, '')}; the model takes {declared}",
            hint=f"reorder the axes, the batch at 0: transpose{order}",
        )
    return DataError(
        "samples-shape",
        f"{where}: {tensor.name} does not have the model's shape",
        why=f"its shape is {shape}; the model takes {declared}",
        hint="an array of the input's rank holds samples along axis 0; one axis more holds "
        "a whole feed in each array[i]",
    )


def _reordering(
    shape: tuple[int, ...], dims: tuple[Dim, ...], first: int
) -> tuple[int, ...] | None:
    """The transposition that makes `shape` fit, axis 0 kept in its place; None if there is none.

    Moving the channels is tried first, because that is what it nearly always is.
    """
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
    """One label for each sample, and labels that are numbers.

    Raises:
        DataError: `samples-labels-type` or `samples-labels-count`.
    """
    check_label_header(labels.shape, labels.dtype, count, where)


def check_label_header(shape: tuple[int, ...], dtype: np.dtype, count: int, where: str) -> None:
    """As `check_labels`, from shape and type alone."""
    refuse_objects(dtype, LABELS, where)
    if dtype.kind not in "iufb":
        raise DataError(
            "samples-labels-type",
            f"{where}: the labels are not numbers",
            why=f"their type is {dtype}",
            hint="give the index of the class, counted from 0, as an integer",
        )
    if not shape or shape[0] != count:
        raise DataError(
            "samples-labels-count",
            f"{where}: there is not one label for each sample",
            why=f"{shape[0] if shape else 'a single'} label(s) for {count} sample(s)",
            hint="give labels along axis 0, in the order of the samples",
        )
