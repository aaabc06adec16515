"""What shapes the outputs really have: exporters state wrong ones, so the graph is run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.errors import GraphError
from edgepack.graph.proto import copied
from edgepack.graph.run import Runner
from edgepack.graph.signature import signature
from edgepack.graph.sizes import bind_sizes, candidate_sizes, resized
from edgepack.runtime.tensor import Dim, Tensor


def state_outputs(model: Any, inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]) -> Any:
    """A copy of the model whose inputs and outputs state their true axes.

    The graph is run on the example and with each dynamic axis at another size. An output's axis
    that never changes is fixed; one that is always as long as an input's axis gets that name;
    others keep the graph's expression (`2*time`) or are called after their output and position.
    torch.onnx states the sizes it traced for the outputs of recurrent layers, and TorchScript's
    exporter states names of its own.

    Args:
        model: an `onnx.ModelProto`.
        inputs: the inputs with the names of their axes.
        example: one array per input.

    Raises:
        GraphError: `example-misfit`, and `run-failed` where the graph does not run on the
            example.
    """
    base = bind_sizes(inputs, example)
    runner = Runner(model)
    runs = [(base, _shapes(runner, example))]
    for name, size in base.items():
        for candidate in candidate_sizes(size)[:2]:
            sizes = {**base, name: candidate}
            try:
                runs.append((sizes, _shapes(runner, resized(inputs, example, sizes))))
            except GraphError:  # a size the model refuses shows nothing about its outputs
                continue
    stated = copied(model)
    known_outputs = signature(model)[1]
    for index, (value, known) in enumerate(zip(stated.graph.output, known_outputs, strict=True)):
        measured = [(sizes, shapes[index]) for sizes, shapes in runs]
        rank = len(measured[0][1])
        names = known.shape if known.rank == rank else (None,) * rank
        _state(value, [_axis(measured, a, n, f"{value.name}_{a}") for a, n in enumerate(names)])
    return state_inputs(stated, inputs)


def state_inputs(model: Any, inputs: Sequence[Tensor]) -> Any:
    """A copy of the model whose inputs state the axes that were asked for.

    Args:
        model: an `onnx.ModelProto`.
        inputs: the inputs with the names and sizes of their axes.

    Where the graph's outputs call an axis as its inputs did, they follow.
    """
    given = {tensor.name: tensor.shape for tensor in inputs}
    complete = copied(model)
    renamed: dict[str, Dim] = {}
    for value in complete.graph.input:
        if value.name in given:
            before = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            renamed |= {
                name: dim for name, dim in zip(before, given[value.name], strict=False) if name
            }
            _state(value, given[value.name])
    for value in complete.graph.output:
        shape = value.type.tensor_type.shape
        if any(dim.dim_param in renamed for dim in shape.dim):
            dims = [_own(dim) for dim in shape.dim]
            _state(value, [renamed.get(d, d) if isinstance(d, str) else d for d in dims])
    try:
        Runner(complete)
    except GraphError:
        # A branch that is never taken may be at odds with the sizes (Silero VAD holds a network
        # for 8 kHz in the graph that is fed 16 kHz): the inputs stay as the graph states them.
        return model
    return complete


def _own(dim: Any) -> Dim | None:
    """What a graph states of an axis; None where it states nothing."""
    return int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param) or None


def _shapes(runner: Runner, arrays: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    return [output.shape for output in runner.run(arrays)]


def _axis(
    runs: Sequence[tuple[Mapping[str, int], tuple[int, ...]]],
    axis: int,
    known: Dim | None,
    fallback: str,
) -> Dim:
    lengths = [shape[axis] for _, shape in runs]
    for name in runs[0][0]:
        values = [sizes[name] for sizes, _ in runs]
        if values == lengths and len(set(values)) > 1:
            return name
    symbolic = known if isinstance(known, str) and known not in runs[0][0] else None
    if len(set(lengths)) == 1:
        # Data-dependent lengths (`u0`) may happen to agree; torch says so by their name.
        return symbolic if symbolic and re.fullmatch(r"u\d+", symbolic) else lengths[0]
    return symbolic or fallback


def _state(value: Any, shape: Sequence[Dim | None]) -> None:
    tensor = value.type.tensor_type
    tensor.shape.ClearField("dim")
    tensor.shape.SetInParent()
    for dim in shape:
        stated = tensor.shape.dim.add()
        if isinstance(dim, str):
            stated.dim_param = dim
        elif dim is not None:
            stated.dim_value = dim
