"""The shapes that an engine is built for: a range for every dynamic axis of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepack.errors import SpecError
from edgepack.ledger import Ledger
from edgepack.request import Request
from edgepack.runtime.bundle.engines import TENSORRT
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.runtime.tensor import Tensor
from edgepack.spec.document import did_you_mean
from edgepack.spec.tensors import Span

# Where nothing is stated: so many times the size of the reference samples, at most. Kernels have
# to serve the whole range, and memory is taken for its end.
LARGEST = 4


def check_axes(request: Request, inputs: Sequence[Tensor]) -> None:
    """Raise SpecError where a range is stated for an axis that no input has."""
    names = {dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str)}
    for name in request.axes:
        if name not in names:
            raise SpecError(
                "axis-unknown",
                f"the model has no dynamic axis named {name!r}",
                why="a range is stated for it" + did_you_mean(name, names)
                if names
                else "every axis of its inputs is fixed",
                hint="name the axes under [[inputs]] in the manifest, or with --input",
            )


def profiles(
    request: Request, inputs: Sequence[Tensor], example: Mapping[str, np.ndarray], ledger: Ledger
) -> Profiles:
    """The smallest, usual and largest shape of every input with a dynamic axis.

    Args:
        request: with the ranges that were stated.
        inputs: of the model.
        example: one whole feed, which stands for those that are not stated.
        ledger: told which ranges were assumed.

    Returns nothing for an engine that takes every shape as it comes. Raises SpecError where the
    example lies outside of what was stated.
    """
    if request.target.engine != TENSORRT:
        return {}
    sizes = {
        dim: int(size)
        for tensor in inputs
        for dim, size in zip(tensor.shape, example[tensor.name].shape, strict=True)
        if isinstance(dim, str)
    }
    spans = {name: request.axes.get(name, Span(1, n, LARGEST * n)) for name, n in sizes.items()}
    for name, size in sizes.items():
        span = spans[name]
        if not span.least <= size <= span.most:
            raise SpecError(
                "axis-range",
                f"the reference samples do not fit the range of the axis {name!r}",
                why=f"it is stated from {span.least} to {span.most}; on them it is {size}",
                hint="let the range hold them: the device verifies its engine on them",
            )
    assumed = [name for name in sizes if name not in request.axes]
    if assumed:
        told = ", ".join(
            f"{name} from 1 to {spans[name].most}, best at {spans[name].usual}" for name in assumed
        )
        ledger.warn(
            f"TensorRT wants a range for every dynamic axis, and none is stated: taken {told} "
            "([axes] in the manifest, or --axis NAME=MIN:OPT:MAX)"
        )
    return {
        tensor.name: (
            tuple(spans[d].least if isinstance(d, str) else d for d in tensor.shape),
            tuple(spans[d].usual if isinstance(d, str) else d for d in tensor.shape),
            tuple(spans[d].most if isinstance(d, str) else d for d in tensor.shape),
        )
        for tensor in inputs
        if any(isinstance(dim, str) for dim in tensor.shape)
    }
