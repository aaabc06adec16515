"""Derive the shapes to build an engine for: a range for every dynamic axis of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgepack import engine
from edgepack.errors import SpecError
from edgepack.ledger import Ledger
from edgepack.request import Request
from edgepack.runtime.bundle.engines import TENSORRT
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import did_you_mean
from edgepack.spec.tensors import Span


def check_axes(request: Request, inputs: Sequence[Tensor]) -> None:
    """Refuse a range for an axis that no input has. Raises SpecError axis-unknown."""
    names: set[str] = set()
    for tensor in inputs:
        names.update(_list_dynamic(tensor))
    for name in request.axes:
        if name not in names:
            reason = "every axis of its inputs is fixed"
            if names:
                reason = "a range is set for it" + did_you_mean(name, names)
            raise SpecError(
                "axis-unknown",
                f"the model has no dynamic axis named {name!r}",
                why=reason,
                hint="name the axes under [[inputs]] in the manifest, or with --input",
            )


def derive_profiles(
    request: Request, inputs: Sequence[Tensor], example: Mapping[str, np.ndarray], ledger: Ledger
) -> Profiles:
    """Return the smallest, usual and largest shape of every input with a dynamic axis.

    An image of shape ("batch", 3, 224, 224) and a reference sample with batch 1 give
    (1, 3, 224, 224), (1, 3, 224, 224) and (4, 3, 224, 224).

    Args:
        request: holds the ranges of the user.
        inputs: of the model.
        example: one reference sample; its sizes determine the other ranges.
        ledger: receives a warning about assumed ranges.

    Returns nothing for an engine that takes every shape. Raises SpecError if the example lies
    outside of a range.
    """
    if engine.find_runtime(request.target) != TENSORRT:
        return {}
    spans: dict[str, Span] = {}
    assumed: list[str] = []
    for name, size in _measure_axes(inputs, example).items():
        span = request.axes.get(name)
        if span is None:
            # Of a sample with 24 tokens: from 1 to 96, best at 24.
            span = Span.around(size)
        elif span.assumed and span.most < size:
            span = replace(span, most=size)
        if span.assumed:
            assumed.append(f"{name} from 1 to {span.most}, best at {span.usual}")
        spans[name] = span
        if not span.least <= size <= span.most:
            raise SpecError(
                "axis-range",
                f"the reference samples do not fit the range of the axis {name!r}",
                why=f"it is {span.least} to {span.most}; the samples have {size}",
                hint="extend the range: the device verifies its engine on these samples",
            )
    # An assumed range is announced: an engine is slow, or fails, outside of it.
    if assumed:
        ledger.warn(
            f"TensorRT needs a range for every dynamic axis: assumed {', '.join(assumed)} "
            "([axes] in the manifest, or --axis NAME=MIN:OPT:MAX)"
        )
    shapes = {}
    for tensor in inputs:
        if _list_dynamic(tensor):
            shapes[tensor.name] = _bound_shape(tensor, spans)
    return shapes


def _list_dynamic(tensor: Tensor) -> list[str]:
    """Return the names of a tensor's dynamic axes, in order."""
    return [dim for dim in tensor.shape if isinstance(dim, str)]


def _measure_axes(inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the size of every dynamic axis in a sample, by the axis's name."""
    sizes: dict[str, int] = {}
    for tensor in inputs:
        for dim, size in zip(tensor.shape, example[tensor.name].shape, strict=True):
            if isinstance(dim, str):
                sizes[dim] = int(size)
    return sizes


def _bound_shape(
    tensor: Tensor, spans: Mapping[str, Span]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return a tensor's smallest, usual and largest shape."""
    least: list[int] = []
    usual: list[int] = []
    most: list[int] = []
    for dim in tensor.shape:
        # A fixed axis has a single size.
        span = spans[dim] if isinstance(dim, str) else Span(dim, dim, dim)
        least.append(span.least)
        usual.append(span.usual)
        most.append(span.most)
    return tuple(least), tuple(usual), tuple(most)
