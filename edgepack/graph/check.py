"""Check that every dynamic axis of a graph accepts other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import EdgepackError, GraphError
from edgepack.graph.agreement import SNR_FLOOR_DB, disagreement
from edgepack.graph.run import Runner, failing_node
from edgepack.graph.signature import signature
from edgepack.graph.sizes import bind_sizes, candidate_sizes, resize_axes
from edgepack.onnx_tools.walk import nodes_of
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
SIZES_TRIED = 2


def check_dynamic_axes(
    model: ModelProto,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    run_original: Run | None = None,
    floor: float = SNR_FLOOR_DB,
) -> tuple[str, ...]:
    """Run the graph at two other sizes of each dynamic axis and compare it with the original.

    A size that the original model rejects says nothing about the graph, so the next one is tried
    (a network that halves its input five times accepts multiples of 32 only).

    Args:
        model: the exported graph, an `onnx.ModelProto`.
        inputs: the requested inputs; axes that share a name change together.
        example: one array per input.
        run_original: the original model. Without it the graph must run at one other size, and
            its outputs cannot be compared.
        floor: the lowest SNR in dB at which floating outputs agree.

    Returns:
        One note per axis, with the sizes that were run.

    Raises:
        GraphError: `axis-frozen` if the graph accepts only one size of an axis; `axis-wrong` if
            its outputs differ from the original's at another size; `axis-fixed` if the original
            model accepts only one size, too; `export-wrong` if graph and original differ on the
            example itself.
    """
    sizes = bind_sizes(inputs, example)
    _require_symbols(model, inputs)
    runner = Runner(model)
    if run_original is not None:
        difference = disagreement(
            run_original(example), runner.run(example), runner.output_names, floor
        )
        if difference:
            raise GraphError(
                "export-wrong",
                "the exported graph does not compute what the model computes",
                why=f"on the example inputs: {difference}",
                hint=_quantized(model)
                or "look in forward() for randomness or for state that survives a call",
            )
    notes = []
    for name in sizes:
        note = _check_axis(runner, model, inputs, example, sizes, name, run_original, floor)
        notes.append(note)
    return tuple(notes)


def check_feeds(
    model: ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], run_original: Run, floor: float
) -> str:
    """Compare a graph with the original on several feeds, since a trace covers only its example.

    Args:
        model: the graph, an `onnx.ModelProto`.
        feeds: arrays by input name.
        run_original: the original model.
        floor: the lowest SNR in dB at which floating outputs agree.

    Returns a note. Raises GraphError `export-wrong`.
    """
    runner = Runner(model)
    for index, feed in enumerate(feeds):
        difference = disagreement(run_original(feed), runner.run(feed), runner.output_names, floor)
        if difference:
            raise GraphError(
                "export-wrong",
                "the traced graph does not compute what the model computes",
                why=f"on sample {index}: {difference}",
                hint="a trace records one path: make forward() take the same path for every input",
            )
    return f"trace compared with the model on {len(feeds)} samples"


def _check_axis(
    runner: Runner,
    model: ModelProto,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    axis: str,
    run_original: Run | None,
    floor: float,
) -> str:
    """Run the graph at other sizes of one axis and return a note. Raises GraphError."""
    accepted: list[int] = []
    refusal: str = ""
    for size in candidate_sizes(sizes[axis]):
        arrays = resize_axes(inputs, example, {**sizes, axis: size})
        reference: tuple[np.ndarray, ...] | None = None
        if run_original is not None:
            try:
                reference = run_original(arrays)
            except Exception as error:  # noqa: BLE001 - the user's code: any error is a refusal
                refusal = _first_line(error)
                continue
        try:
            outputs = runner.run(arrays)
        except GraphError as error:
            refusal = error.why
            if reference is None:
                # Without the original, nothing says that the model accepts this size itself.
                continue
            why = _plain_failure(model, arrays) or error.why
            raise _frozen(axis, sizes[axis], size, why) from error
        difference = reference and disagreement(reference, outputs, runner.output_names, floor)
        if difference:
            raise GraphError(
                "axis-wrong",
                f"the graph computes something else if the axis {axis} is not {sizes[axis]}",
                why=f"at {axis} = {size}: {difference}",
                hint=_quantized(model)
                or "a size became a constant in the export: take it from the tensor's shape "
                f"in forward(), or declare the axis fixed: {sizes[axis]} for {axis}",
            )
        accepted.append(size)
        if len(accepted) == SIZES_TRIED:
            break
    if accepted:
        # Example: "Axis batch was run at 3 and 4 beside 2, as the original does."
        comparison = "as the original does" if run_original is not None else "not compared"
        sizes_text = " and ".join(map(str, accepted))
        return f"Axis {axis} was run at {sizes_text} beside {sizes[axis]}, {comparison}."
    if run_original is None:
        raise _frozen(axis, sizes[axis], candidate_sizes(sizes[axis])[0], refusal)
    raise GraphError(
        "axis-fixed",
        f"the axis {axis} was declared dynamic, but the model accepts only {sizes[axis]}",
        why=f"the original model rejected {', '.join(map(str, candidate_sizes(sizes[axis])))}"
        f"\n{refusal}",
        hint=f"declare it fixed ({sizes[axis]} for {axis} in --input), or give axes that must "
        "have equal sizes the same name",
    )


def _quantized(model: ModelProto) -> str:
    """Return the hint for a graph that was quantized before, "" for any other.

    onnxruntime computes such a graph in integers or in float, depending on how it rewrites it.
    """
    if next(nodes_of(model.graph, "DequantizeLinear"), None) is not None:
        return "the network is already quantized: pass the model as it was trained"
    return ""


def _require_symbols(model: ModelProto, inputs: Sequence[Tensor]) -> None:
    """Raise `axis-frozen` if the graph declares a number for a dynamic axis."""
    declared: dict[str, Tensor] = {}
    for tensor in signature(model)[0]:
        declared[tensor.name] = tensor
    for tensor in inputs:
        actual = declared.get(tensor.name)
        if actual is None or actual.rank != tensor.rank:
            raise GraphError(
                "input-names",
                f"the graph does not have the input {tensor}",
                why=f"it takes {'; '.join(map(str, declared.values()))}",
                hint="name the inputs as the graph does, with the same number of axes",
            )
        for symbol, dim in zip(tensor.shape, actual.shape, strict=True):
            if isinstance(symbol, str) and isinstance(dim, int):
                raise _frozen(symbol, dim, None, f"the graph's input is {actual}")


def _frozen(axis: str, size: int, tried: int | None, why: str) -> GraphError:
    what = f"the dynamic axis {axis} froze at {size} in the export"
    node = failing_node(why)
    if node:
        what += f", at the node {node}"
    if tried is not None:
        why = f"at {axis} = {tried}: {why}"
    return GraphError(
        "axis-frozen",
        what,
        why=why,
        hint="take the size from the tensor's shape in forward() instead of a number, "
        f"or declare the axis fixed: {size} for {axis} in --input",
    )


def _plain_failure(model: ModelProto, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return the failure of the graph without onnxruntime's rewriting, which renames nodes."""
    try:
        Runner(model, optimize=False).run(arrays)
    except GraphError as error:
        return error.why
    return None


def _first_line(error: BaseException) -> str:
    # A model may raise an exception without a message; its type is then the only clue.
    why = str(error)
    if isinstance(error, EdgepackError):
        why = error.why
    return (why.strip().splitlines() or [type(error).__name__])[0][:300]
