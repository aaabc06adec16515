"""Inner tensors of a network, run over samples in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from edgepack.data.samples import Samples
from edgepack.runtime.session.onnx_session import import_engine

# Inner tensors of one batch that are held at a time; a larger batch takes several runs.
HELD_BYTES = 192 * 2**20


def session(model: onnx.ModelProto) -> Any:
    """Create an onnxruntime session on the CPU whose threads sleep while it waits."""
    onnxruntime = import_engine()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is raised, and printed once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps the largest buffers of all batches; calibration prefers a low peak.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def exposing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Copy a model so that it returns these tensors alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def grouped(names: Sequence[str], elements: dict[str, int]) -> list[list[str]]:
    """Divide names into groups whose tensors fit `HELD_BYTES`; each has at least one."""
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
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the tensors of every batch, a group at a time.

    Args:
        model: float32.
        groups: names of inner tensors, inputs or outputs; each group is run by itself.
        samples: to run.
        batch_size: samples at once.
        advance: called with the number of samples after each batch.

    Yields:
        the batch's number and name -> array, for one batch and one group.
    """
    inputs = {value.name for value in model.graph.input}
    # A graph input cannot be an output as well.
    runs = [
        (group, session(exposing(model, [n for n in group if n not in inputs])))
        if any(n not in inputs for n in group)
        else (group, None)
        for group in groups
    ]
    for number, batch in enumerate(samples.batches(batch_size)):
        for group, runner in runs:
            values: dict[str, np.ndarray] = {n: batch.inputs[n] for n in group if n in inputs}
            if runner is not None:
                names = [n for n in group if n not in inputs]
                feed = {v.name: batch.inputs[v.name] for v in runner.get_inputs()}
                values.update(zip(names, runner.run(names, feed), strict=True))
            yield number, values
        advance(batch.count)
