"""True shapes of a graph's outputs, found by running it, because exporters declare wrong ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import GraphError
from edgepack.graph.run import Runner
from edgepack.graph.signature import signature
from edgepack.graph.sizes import bind_sizes, candidate_sizes, resize_axes
from edgepack.onnx_tools.copies import copied
from edgepack.runtime.tensor import Dim, Tensor

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


def state_outputs(
    model: ModelProto, inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]
) -> ModelProto:
    """Return a copy of the model whose inputs and outputs declare their true axes.

    The graph is run on the example and with each dynamic axis at another size. An output axis
    that never changes is fixed; one that is always as long as an input axis gets its name;
    others keep the graph's expression (`2*time`) or are named after their output and position.
    torch.onnx declares the traced sizes for outputs of recurrent layers, and TorchScript's
    exporter invents names.

    Args:
        model: an `onnx.ModelProto`.
        inputs: the inputs with the names of their axes.
        example: one array per input.

    Raises:
        GraphError: `example-misfit`, and `run-failed` if the graph does not run on the example.
    """
    base = bind_sizes(inputs, example)
    runner = Runner(model)
    runs = [(base, _shapes(runner, example))]
    for name, size in base.items():
        for candidate in candidate_sizes(size)[:2]:
            sizes = {**base, name: candidate}
            try:
                runs.append((sizes, _shapes(runner, resize_axes(inputs, example, sizes))))
            except GraphError:  # a size that the model rejects shows nothing about its outputs
                continue
    result = copied(model)
    declared_outputs = signature(model)[1]
    for index, (value, declared) in enumerate(
        zip(result.graph.output, declared_outputs, strict=True)
    ):
        measured = [(sizes, shapes[index]) for sizes, shapes in runs]
        rank = len(measured[0][1])
        names: Sequence[Dim | None] = declared.shape
        # Some exporters declare another rank than the output has; its names then mean nothing.
        if declared.rank != rank:
            names = (None,) * rank
        shape = []
        for axis, dim in enumerate(names):
            shape.append(_axis(measured, axis, dim, f"{value.name}_{axis}"))
        _set_shape(value, shape)
    return state_inputs(result, inputs)


def state_inputs(model: ModelProto, inputs: Sequence[Tensor]) -> ModelProto:
    """Return a copy of the model whose inputs declare the requested axes.

    Args:
        model: an `onnx.ModelProto`.
        inputs: the inputs with the names and sizes of their axes.

    Output axes that share a name with an input axis are renamed with it.
    """
    shapes = {tensor.name: tensor.shape for tensor in inputs}
    result = copied(model)
    renamed: dict[str, Dim] = {}
    for value in result.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            for declared, requested in zip(dims, shapes[value.name], strict=False):
                if declared.dim_param:
                    renamed[declared.dim_param] = requested
            _set_shape(value, shapes[value.name])
    for value in result.graph.output:
        declared_sizes = list(map(_declared_size, value.type.tensor_type.shape.dim))
        sizes: list[Dim | None] = []
        for size in declared_sizes:
            sizes.append(renamed.get(size, size) if isinstance(size, str) else size)
        if sizes != declared_sizes:
            _set_shape(value, sizes)
    try:
        Runner(result)
    except GraphError:
        # A branch that is never executed may contradict the sizes (Silero VAD has a network for
        # 8 kHz in the graph that gets 16 kHz), so the inputs keep the axes that the graph declares.
        return model
    return result


def _declared_size(dim: Any) -> Dim | None:
    """Return the size or name that a graph declares for an axis, None without one."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _shapes(runner: Runner, arrays: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    return [output.shape for output in runner.run(arrays)]


def _axis(
    runs: Sequence[tuple[Mapping[str, int], tuple[int, ...]]],
    axis: int,
    declared: Dim | None,
    fallback: str,
) -> Dim:
    """Return the size or name of one output axis.

    Args:
        runs: per run, the sizes of the input axes and the shape of the output.
        axis: position of the axis in the output.
        declared: size or name of the axis in the graph.
        fallback: name for an axis that follows no input and has no name in the graph.
    """
    # With runs at batch 2 and 3, lengths of 2 and 3 mean "batch", 4 and 6 keep "2*batch".
    lengths = [shape[axis] for _, shape in runs]
    for name in runs[0][0]:
        values = [sizes[name] for sizes, _ in runs]
        if values == lengths and len(set(values)) > 1:
            return name
    # A symbol that is an input axis would contradict the measured lengths, so it is ignored.
    symbolic = None
    if isinstance(declared, str) and declared not in runs[0][0]:
        symbolic = declared
    if len(set(lengths)) == 1:
        # Data-dependent lengths may agree by chance; torch names them u0, u1, ...
        if symbolic and re.fullmatch(r"u\d+", symbolic):
            return symbolic
        return lengths[0]
    return symbolic or fallback


def _set_shape(value: ValueInfoProto, shape: Sequence[Dim | None]) -> None:
    tensor = value.type.tensor_type
    tensor.shape.ClearField("dim")
    # Without this a scalar, which has no axes, would have no shape at all.
    tensor.shape.SetInParent()
    for dim in shape:
        entry = tensor.shape.dim.add()
        if isinstance(dim, str):
            entry.dim_param = dim
        elif dim is not None:
            entry.dim_value = dim
