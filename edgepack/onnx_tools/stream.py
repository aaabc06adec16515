"""Inner tensors of a network, run over samples in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx

from edgepack.onnx_tools.copies import with_outputs
from edgepack.onnx_tools.sessions import Session, create_session
from edgepack.onnx_tools.walk import names_of

# Inner tensors of one batch that are held at a time; a larger batch takes several runs.
HELD_BYTES = 192 * 2**20


class Feed(Protocol):
    """One batch of samples."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Return one array per input of the model."""

    @property
    def count(self) -> int:
        """Return the number of samples."""


class Feeds(Protocol):
    """A source of samples that can be read any number of times: `data.samples.Samples`."""

    def batches(self, size: int) -> Iterator[Feed]:
        """Iterate over all samples from the first, at most `size` per batch."""


def session(model: onnx.ModelProto, arena: bool = False) -> Session:
    """Create a session for calibration.

    Args:
        model: float32.
        arena: keep the largest buffers of all batches. Without, the peak of memory is lower, and a
            run takes up to twice the time, for it gets its memory from the system each time.
    """
    return create_session(model, arena=arena)


def run_batch(
    runner: Session, batch: Feed, names: Sequence[str] | None = None
) -> Sequence[np.ndarray]:
    """Return the outputs of these names for one batch; None stands for all outputs."""
    # A session without an input that the batch has, such as labels, must not get it.
    feed = {value.name: batch.inputs[value.name] for value in runner.get_inputs()}
    return runner.run(names, feed)


def grouped(names: Sequence[str], elements: Mapping[str, int]) -> list[list[str]]:
    """Divide names into groups whose tensors fit `HELD_BYTES`; each has at least one."""
    # Tensors of 100, 60 and 50 MiB become two groups at 192 MiB: the first two, and the last.
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = 4 * elements.get(name, 0)
        if not groups or size > room:
            groups.append([])
            room = HELD_BYTES
        groups[-1].append(name)
        room -= size
    return groups


def tensors(
    model: onnx.ModelProto,
    groups: Sequence[Sequence[str]],
    samples: Feeds,
    batch_size: int,
    advance: Callable[[int], None],
    arena: bool = False,
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Yield the tensors of every batch, a group at a time.

    Args:
        model: float32.
        groups: names of inner tensors, inputs or outputs; each group is run by itself.
        samples: to run.
        batch_size: samples at once.
        advance: called with the number of samples after each batch.
        arena: see `session`.

    Yields:
        the batch's number, its number of samples and name -> array, for one batch and one group.
    """
    inputs = names_of(model.graph.input)
    runs = []
    for group in groups:
        # A graph input cannot be an output as well, so its values are those of the feed.
        fed = [name for name in group if name in inputs]
        inner = [name for name in group if name not in inputs]
        runner = session(with_outputs(model, inner), arena) if inner else None
        runs.append((fed, inner, runner))
    for number, batch in enumerate(samples.batches(batch_size)):
        for fed, inner, runner in runs:
            values = {name: batch.inputs[name] for name in fed}
            if runner is not None:
                values.update(zip(inner, run_batch(runner, batch, inner), strict=True))
            yield number, batch.count, values
        advance(batch.count)
