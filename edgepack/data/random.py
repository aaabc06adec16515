"""Random samples, for builds without real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgepack.data.fills import Fill, integers, normal
from edgepack.data.stream import Piece, SampleStream
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

# Random integers lie in [0, 2) by default: 0 and 1 are valid for nearly every input of indices,
# and a larger index may read past the end of a table.
INTEGER_BOUND = 2


def random_samples(
    inputs: tuple[Tensor, ...],
    count: int,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    *,
    fills: Mapping[str, Fill] | None = None,
) -> SampleStream:
    """Draw samples that show that a model can be built, and nothing about its accuracy.

    Sample i depends on `seed` and i alone, so every pass yields the same samples in batches of any
    size.

    Args:
        inputs: the model's inputs.
        count: number of samples.
        seed: of the generator.
        sizes: size of each named axis except the batch axis, which is axis 0 of the first input.
        fills: values by input name; by default floats are drawn from the normal distribution of
            mean 0 and standard deviation 1, and integers from 0 and 1.

    Raises:
        DataError: `samples-size-unknown`, or `samples-dtype` for a type that cannot be drawn.
    """
    # For x:float32:batch,3,height,width with sizes={"height": 32, "width": 32} a sample has the
    # shape (1, 3, 32, 32), and samples are gathered into batches of any size. For x:float32:8,16
    # it is (1, 16), gathered into batches of exactly 8.
    if count < 1:
        raise ValueError(f"at least one sample is drawn, not {count}")
    batch = None
    if inputs and inputs[0].rank:
        batch = inputs[0].shape[0]
    divisible = batch is not None and all(tensor.shape[:1] == (batch,) for tensor in inputs)
    exact = None
    if divisible and isinstance(batch, int):
        exact = batch
    axes: dict[str, int] = {}
    if isinstance(batch, str):
        axes[batch] = 1
    axes |= dict(sizes or {})
    if divisible and isinstance(batch, str):
        # Samples are gathered later, so each has one row, whatever `sizes` says of the batch.
        axes[batch] = 1
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Fill] = {}
    for tensor in inputs:
        shape = tuple(_size(dim, tensor, axes) for dim in tensor.shape)
        shapes[tensor.name] = shape if exact is None else (1, *shape[1:])
        values[tensor.name] = (fills or {}).get(tensor.name) or _default_fill(tensor)

    def pieces(size: int) -> Iterator[Piece]:
        for index in range(count):
            generator = np.random.default_rng([seed, index])
            feed = {}
            for tensor in inputs:
                name = tensor.name
                array = values[name].draw(generator, shapes[name])
                feed[name] = np.array(array).astype(tensor.dtype)
            yield Piece(feed, None, 1, divisible)

    return SampleStream(f"random values, seed {seed}", pieces, exact)


def _size(dim: int | str, tensor: Tensor, axes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim in axes:
        return axes[dim]
    raise DataError(
        "samples-size-unknown",
        f"random samples of {tensor.name} need a size for its axis {dim}",
        why=f"the input is {tensor}, and {dim} may have any size",
        hint=f"--axis {dim}=128 states it, or use real samples",
    )


def _default_fill(tensor: Tensor) -> Fill:
    kind = np.dtype(tensor.dtype).kind
    if kind == "f":
        return normal()
    if kind in "iub":
        return integers(INTEGER_BOUND)
    raise DataError(
        "samples-dtype",
        f"random values of the type of {tensor.name} cannot be drawn",
        why=f"its type is {tensor.dtype}",
        hint="use real samples",
    )
