"""Run the original at other sizes of its dynamic axes, including the batch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgepack.bundle import OtherSize
from edgepack.context import Context
from edgepack.context.graph import describe_tensors
from edgepack.errors import EdgepackError
from edgepack.graph.sizes import bind_sizes, candidate_sizes
from edgepack.request import Request
from edgepack.runtime.parity.sizes import feed_at_size, stack_limit
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.spec.tensors import Span


def answer_sizes(
    context: Context, source: Source, inputs: Sequence[Tensor],
    feeds: Sequence[Mapping[str, np.ndarray]], digest: str,
) -> tuple[OtherSize, ...]:  # fmt: skip
    """Return the original's answers to reference samples at one other size of every dynamic axis.

    A bundle with reference samples of one size could be wrong at every other size, and from the
    second row of a batch on. Axes that the original runs at no other size are omitted; the
    export refuses them.

    Args:
        context: its request has the ranges that an engine is built for.
        source: the original model.
        inputs: of the model.
        feeds: the reference samples.
        digest: of everything that determines the original's answers.
    """
    request, cache = context.request, context.cache
    spans = {name: [span.least, span.most] for name, span in _list_spans(request).items()}
    parts = {"original": digest, "inputs": describe_tensors(inputs), "spans": spans}
    key = cache.key("sizes", parts)
    # An entry without sizes is stored as well, so that no later build tries them again.
    entry = cache.get("sizes", key)
    if entry is None:
        sizes = [*_try_sizes(request, source, inputs, feeds)]
        contents: dict[str, bytes] = {}
        listed: list[tuple[str, int]] = []
        for i, size in enumerate(sizes):
            contents[f"{i}.npz"] = _serialize(size.original)
            listed.append((size.axis, size.size))
        entry = cache.put("sizes", key, contents, {"sizes": listed})
    result = []
    for i, (axis, size) in enumerate(entry.document["sizes"]):
        result.append(OtherSize(axis, size, _read_arrays(entry.folder / f"{i}.npz")))
    return tuple(result)


def _try_sizes(
    request: Request,
    source: Source,
    inputs: Sequence[Tensor],
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> Iterator[OtherSize]:
    # One axis at a time: of 1 sample of 128 tokens, 8 samples of 128 tokens, then 1 of 129.
    bound = bind_sizes(inputs, feeds[0])
    for axis, usual in bound.items():
        span = _list_spans(request).get(axis)
        stack = stack_limit(inputs, feeds, axis)
        stacks = range(stack, 1, -1)
        for size in (*stacks, *candidate_sizes(usual)):
            if span is not None and not span.least <= size <= span.most:
                continue
            try:
                answers = source.run(feed_at_size(inputs, feeds, axis, size))
            except EdgepackError:  # the original cannot run at this size
                continue
            yield OtherSize(axis, size, list(map(np.asarray, answers)))
            # The first size that the original can run at is enough.
            break


def _list_spans(request: Request) -> dict[str, Span]:
    """Return the ranges that the user declares; an assumed one excludes no size."""
    return {name: span for name, span in request.axes.items() if not span.assumed}


def _serialize(arrays: Sequence[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def _read_arrays(path: object) -> list[np.ndarray]:
    # In the order in which `savez` wrote them.
    with np.load(str(path), allow_pickle=False) as arrays:
        return list(arrays.values())
