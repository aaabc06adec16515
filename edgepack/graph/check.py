"""Does every dynamic axis really take another size?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgepack.errors import EdgepackError, GraphError
from edgepack.graph.agreement import SNR_FLOOR_DB, disagreement
from edgepack.graph.proto import walk_nodes
from edgepack.graph.run import Runner, failing_node
from edgepack.graph.signature import signature
from edgepack.graph.sizes import bind_sizes, candidate_sizes, resized
from edgepack.runtime.tensor import Tensor

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
SIZES_TRIED = 2


def check_dynamic_axes(
    model: Any,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    run_original: Run | None = None,
    floor: float = SNR_FLOOR_DB,
) -> tuple[str, ...]:
    """Run the graph on two more sizes of each dynamic axis, and compare with the original.

    A size that the original model refuses says nothing about the graph, and the next one is
    tried (a network that halves its input five times takes multiples of 32 only).

    Args:
        model: the exported graph, an `onnx.ModelProto`.
        inputs: the inputs as they were asked for; axes of one name change together.
        example: one array per input.
        run_original: the original model. Without it the graph must run on one size more, and its
            outputs can only be checked for running, not for being right.
        floor: SNR in dB from which on floating outputs agree.

    Returns:
        Notes: which sizes of which axis were run.

    Raises:
        GraphError: `axis-frozen` where an axis takes only one size in the graph; `axis-wrong`
            where the graph computes something else at another size; `axis-fixed` where the
            original model, too, takes only one size; `export-wrong` where graph and original
            differ on the example itself.
    """
    sizes = bind_sizes(inputs, example)
    _require_symbols(model, inputs)
    runner = Runner(model)
    if run_original is not None:
        base = disagreement(run_original(example), runner.run(example), runner.output_names, floor)
        if base:
            raise GraphError(
                "export-wrong",
                "the exported graph does not compute what the model computes",
                why=f"on the example inputs: {base}",
                hint=_quantized(model)
                or "look for randomness or state kept between calls in forward()",
            )
    return tuple(
        _check_axis(runner, model, inputs, example, sizes, name, run_original, floor)
        for name in sizes
    )


def check_feeds(
    model: Any, feeds: Sequence[Mapping[str, np.ndarray]], run_original: Run, floor: float
) -> str:
    """Compare a graph with the original on several feeds: a trace is proved on its example only.

    Args:
        model: the graph, an `onnx.ModelProto`.
        feeds: arrays by input name.
        run_original: the original model.
        floor: SNR in dB from which on floating outputs agree.

    Returns a note. Raises GraphError `export-wrong`.
    """
    runner = Runner(model)
    for index, feed in enumerate(feeds):
        wrong = disagreement(run_original(feed), runner.run(feed), runner.output_names, floor)
        if wrong:
            raise GraphError(
                "export-wrong",
                "the traced graph does not compute what the model computes",
                why=f"on sample {index}: {wrong}",
                hint="a trace follows one path: let forward() take the same path for every input",
            )
    return f"trace compared with the model on {len(feeds)} samples"


def _check_axis(
    runner: Runner,
    model: Any,
    inputs: Sequence[Tensor],
    example: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    axis: str,
    run_original: Run | None,
    floor: float,
) -> str:
    """Run the graph on other sizes of one axis; the note, or GraphError."""
    ran: list[int] = []
    refusal: str = ""
    for size in candidate_sizes(sizes[axis]):
        arrays = resized(inputs, example, {**sizes, axis: size})
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
                continue
            why = _plain_failure(model, arrays) or error.why
            raise _frozen(axis, sizes[axis], size, why) from error
        wrong = reference and disagreement(reference, outputs, runner.output_names, floor)
        if wrong:
            raise GraphError(
                "axis-wrong",
                f"the graph computes something else when the axis {axis} is not {sizes[axis]}",
                why=f"at {axis} = {size}: {wrong}",
                hint=_quantized(model)
                or "a size became a constant in the export: take it from the tensor's shape "
                f"in forward(), or declare the axis fixed: {sizes[axis]} for {axis}",
            )
        ran.append(size)
        if len(ran) == SIZES_TRIED:
            break
    if ran:
        against = "as the original does" if run_original is not None else "not compared"
        listed = " and ".join(map(str, ran))
        return f"Axis {axis} was run at {listed} beside {sizes[axis]}, {against}."
    if run_original is None:
        raise _frozen(axis, sizes[axis], candidate_sizes(sizes[axis])[0], refusal)
    raise GraphError(
        "axis-fixed",
        f"the axis {axis} was declared dynamic, but the model takes only {sizes[axis]}",
        why=f"the original model refused {', '.join(map(str, candidate_sizes(sizes[axis])))}"
        f"\n{refusal}",
        hint=f"declare it fixed ({sizes[axis]} for {axis} in --input), or give axes that must "
        "be of the same size the same name",
    )


def _quantized(model: Any) -> str:
    """What to do where the graph was quantized before; "" where it was not.

    onnxruntime computes such a graph in integers or in float, as it happens to rewrite it.
    """
    if any(node.op_type == "DequantizeLinear" for node in walk_nodes(model.graph)):
        return "the network is quantized already: give it as it was trained"
    return ""


def _require_symbols(model: Any, inputs: Sequence[Tensor]) -> None:
    """Raise `axis-frozen` where the graph itself states a number for a dynamic axis."""
    stated = {tensor.name: tensor for tensor in signature(model)[0]}
    for tensor in inputs:
        found = stated.get(tensor.name)
        if found is None or found.rank != tensor.rank:
            raise GraphError(
                "input-names",
                f"the graph does not have the input {tensor}",
                why=f"it takes {'; '.join(map(str, stated.values()))}",
                hint="name the inputs as the graph does, with the same number of axes",
            )
        for wanted, dim in zip(tensor.shape, found.shape, strict=True):
            if isinstance(wanted, str) and isinstance(dim, int):
                raise _frozen(wanted, dim, None, f"the graph's input is {found}")


def _frozen(axis: str, size: int, tried: int | None, why: str) -> GraphError:
    node = failing_node(why)
    return GraphError(
        "axis-frozen",
        f"the dynamic axis {axis} froze at {size} in the export"
        + (f", at the node {node}" if node else ""),
        why=(f"at {axis} = {tried}: " if tried is not None else "") + why,
        hint="take the size from the tensor's shape in forward() instead of a number, "
        f"or declare the axis fixed: {size} for {axis} in --input",
    )


def _plain_failure(model: Any, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Why the graph fails as it is written: onnxruntime's rewriting gives nodes other names."""
    try:
        Runner(model, optimize=False).run(arrays)
    except GraphError as error:
        return error.why
    return None


def _first_line(error: BaseException) -> str:
    why = error.why if isinstance(error, EdgepackError) else str(error)
    return (why.strip().splitlines() or [type(error).__name__])[0][:300]
