"""A graph without what exporters leave behind, computing the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepack import trial
from edgepack.errors import EdgepackError, GraphError
from edgepack.graph.agreement import disagreement
from edgepack.graph.names import (
    drop_given_inputs,
    drop_unused,
    lift_constants,
    name_nodes,
    strip_metadata,
)
from edgepack.graph.proto import IR_VERSION, copied, require_size, walk_nodes
from edgepack.graph.quiet import muted
from edgepack.graph.run import Runner
from edgepack.ledger import PassResult

SKIPPED = ("fuse_matmul_add_bias_into_gemm_batched", "fuse_attention", "fuse_gqa")
"""Passes of onnxsim that do harm. The first wraps each linear layer of a transformer in Reshape,
Shape, Slice and Concat to make a Gemm of it, and onnxruntime fuses the layer anyway. The others
make one operator of onnxruntime's own out of an attention: TensorRT does not know it, and it hides
its layers from what quantizes, measures and counts."""

GROWTH, SLACK = 1.01, 1024
"""A simplified graph may have this many times the bytes of the one before, and so many more for
names and shapes. What grows further by folding constants (Tile, Expand, a product of two small
matrices) is left unfolded: onnxruntime folds it when it loads the model."""
UNFOLDED: tuple[Mapping[str, Any], ...] = (
    {"tensor_size_threshold": "1KB"},
    {"skip_constant_folding": True},
)
"""Options of onnxsim that fold less: no large Tile, Expand and ConstantOfShape, then nothing."""
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
"""Operators whose second input holds weights that a quantizer reads."""
PAIRS, FASTER = 25, 0.75
"""A larger graph is kept where it is the faster one in this share of so many pairs of calls."""


def simplify(
    model: Any, example: Mapping[str, np.ndarray] | None = None, *, untrusted: bool = False
) -> PassResult[Any]:
    """Fold constants and BatchNorm, inline functions, and strip the graph of metadata.

    The result passes onnx's full check, loads in onnxruntime, and its bytes are the same for the
    same graph in every run. onnxsim does the folding; where it fails, or changes what the graph
    computes on the example, its result is not used and a note says why. A graph that folding has
    made larger is folded less; a larger one is kept only where it is measurably faster.

    Args:
        model: an `onnx.ModelProto`; it is not changed.
        example: one array per input, to compare the graphs before and after; without it only
            the structure is checked.
        untrusted: whether somebody else made the graph: then onnxsim works on it in a process of
            its own, with limits.

    Raises:
        GraphError: `graph-invalid` where the graph does not pass onnx's check, `graph-rejected`
            where onnxruntime does not load it, `graph-too-large`.
    """
    require_size(model.ByteSize(), "the graph")
    tidy = _inlined(copied(model))
    _tidy(tidy)
    notes: list[str] = []
    folded, reason = _folded(tidy, example, untrusted)
    if folded is None:
        notes.append(f"onnxsim was not used: {reason}.")
        require_valid(tidy)
        Runner(tidy)
        folded = tidy
    else:
        folded, note = _without_growth(tidy, folded, example, untrusted)
        notes += [note] if note else []
    ordered = _ordered(folded)
    before, after = _count(model), _count(ordered)
    if folded is not tidy:
        notes.append(
            f"{sum(before.values())} nodes became {sum(after.values())}."
            if before != after
            else f"All {sum(after.values())} nodes were needed already."
        )
    left = _unfolded_norms(ordered)
    if left:
        notes.append(f"{len(left)} BatchNormalization could not be folded: {', '.join(left[:5])}.")
    return PassResult(
        ordered,
        changed=ordered.SerializeToString() != model.SerializeToString(),
        notes=tuple(notes),
        details={
            "nodes_before": sum(before.values()),
            "nodes_after": sum(after.values()),
            "bytes_before": model.ByteSize(),
            "bytes_after": ordered.ByteSize(),
            "onnxsim": folded is not tidy,
            "batch_norms_left": len(left),
        },
    )


def require_valid(model: Any) -> None:
    """Raise GraphError `graph-invalid` where onnx's full check (with shapes) rejects the model."""
    reason = check_failure(model)
    if reason:
        raise GraphError(
            "graph-invalid",
            "the graph breaks the rules of ONNX",
            why=reason,
            hint="export the model again with a recent exporter",
        )


def check_failure(model: Any) -> str | None:
    """onnx's reason against the model in one line, None where it is valid."""
    import onnx
    import onnx.shape_inference

    try:
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError
    ) as error:  # fmt: skip
        return " ".join(str(error).split())[:300]
    return None


def _tidy(model: Any) -> None:
    drop_given_inputs(model)
    lift_constants(model)
    name_nodes(model)
    strip_metadata(model)
    drop_unused(model)
    model.ir_version = min(model.ir_version, IR_VERSION)


def _inlined(model: Any) -> Any:
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _without_growth(
    tidy: Any, folded: Any, example: Mapping[str, np.ndarray] | None, untrusted: bool
) -> tuple[Any, str]:
    """Return a simplified graph no larger than it was, or a faster one, and a note on growth.

    Args:
        tidy: the graph before.
        folded: the same, folded and fused.
        example: one array per input.
        untrusted: as in `simplify`.
    """
    limit, size = GROWTH * tidy.ByteSize() + SLACK, folded.ByteSize()
    if size <= limit:
        return folded, ""
    growth = f"Simplified, the graph grew from {tidy.ByteSize():,} to {size:,} bytes"
    smallest, weighted = folded, _weighted(folded)
    for options in UNFOLDED:
        candidate, _ = _folded(tidy, example, untrusted, **options)
        if candidate is None or candidate.ByteSize() >= smallest.ByteSize():
            continue
        if _weighted(candidate) < weighted:
            # Weights in fp16 behind a Cast, for one: what cannot be read cannot be quantized.
            return folded, f"{growth}: the weights of its layers had to be folded."
        smallest = candidate
        if smallest.ByteSize() <= limit:
            size = smallest.ByteSize()
            return smallest, (
                f"{growth}; the constants that made it grow stay unfolded ({size:,} bytes), and "
                "onnxruntime folds them when it loads the model."
            )
    if _weighted(tidy) < weighted:
        return folded, f"{growth}: the weights of its layers had to be folded."
    # What still grows is fusion: a BatchNormalization in each of several convolutions that share
    # their weights.
    if example is not None and _faster(smallest, tidy, example):
        kept = f"it is kept at {smallest.ByteSize():,} bytes, since its nodes run faster"
        return smallest, f"{growth}; {kept}."
    return tidy, f"{growth} and runs no faster: it is left as it was."


def _weighted(model: Any) -> int:
    """Count the layers whose weights are initializers."""
    constants = {initializer.name for initializer in model.graph.initializer}
    layers = (node for node in walk_nodes(model.graph) if node.op_type in LAYERS)
    return sum(node.input[1] in constants for node in layers)


def _faster(one: Any, other: Any, example: Mapping[str, np.ndarray]) -> bool:
    """Compare two graphs as written, node by node, in pairs of calls: a quantized graph runs so.

    A machine that is busy for a while slows both calls of a pair.
    """
    runners = [Runner(model, threads=1, optimize=False) for model in (one, other)]
    wins = 0
    for _ in range(PAIRS):
        first, second = (_seconds(runner, example) for runner in runners)
        wins += first < second
    return wins >= FASTER * PAIRS


def _seconds(runner: Runner, example: Mapping[str, np.ndarray]) -> float:
    started = time.perf_counter()
    runner.run(example)
    return time.perf_counter() - started


def _folded(
    model: Any, example: Mapping[str, np.ndarray] | None, untrusted: bool, **options: Any
) -> tuple[Any | None, str]:
    """Return onnxsim's result, or None and the reason why it is not used."""
    fold = _fold_apart if untrusted else _fold
    try:
        folded = fold(model, {"skipped_optimizers": list(SKIPPED), **options})
    except EdgepackError as error:
        return None, f"{error.what}: {error.why}"
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its passes in C++ raise
        words = str(error).split("==>")[0].split()
        return None, f"it failed with {' '.join(words)[:300].rstrip('.')}"
    _tidy(folded)
    invalid = check_failure(folded)
    if invalid:
        return None, f"its result is not valid ({invalid})"
    try:
        runner = Runner(folded)
    except EdgepackError as error:
        return None, f"its result does not load ({error.why})"
    foreign = sorted({f"{d}.{kind}" for d, kind in _operators(folded) - _operators(model) if d})
    if foreign:
        return None, f"it put in operators that ONNX does not have ({', '.join(foreign)})"
    if _interface(folded) != _interface(model):
        return None, "it changed the inputs or outputs"
    if example is not None:
        reference = Runner(model).run(example)
        changed = disagreement(reference, runner.run(example), runner.output_names)
        if changed:
            return None, f"it changed what the graph computes ({changed})"
    return folded, ""


def _fold(model: Any, options: Mapping[str, Any]) -> Any:
    import onnxsim

    with muted():
        folded, _ = onnxsim.simplify(model, certify=False, **options)
    return folded


def _fold_apart(model: Any, options: Mapping[str, Any]) -> Any:
    import onnx

    return onnx.load_model_from_string(trial.fold(model.SerializeToString(), options))


def _operators(model: Any) -> set[tuple[str, str]]:
    """Domain and type of every node; "" is ONNX itself."""
    return {
        ("" if node.domain == "ai.onnx" else str(node.domain), str(node.op_type))
        for node in walk_nodes(model.graph)
    }


def _interface(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(v.name for v in model.graph.input if v.name not in weights)
    return inputs, tuple(v.name for v in model.graph.output)


def _ordered(model: Any) -> Any:
    """A copy with its initializers by name: onnxsim's order is that of a hash table."""
    model = copied(model)
    initializers = sorted(model.graph.initializer, key=lambda value: str(value.name))
    copies = [type(value).FromString(value.SerializeToString()) for value in initializers]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    return model


def _count(model: Any) -> Counter[str]:
    return Counter(str(node.op_type) for node in walk_nodes(model.graph))


def _unfolded_norms(model: Any) -> list[str]:
    """BatchNormalization nodes that alone read a convolution's result: they should be gone."""
    readers = Counter(name for node in walk_nodes(model.graph) for name in node.input)
    convolutions = {
        node.output[0]
        for node in walk_nodes(model.graph)
        if node.op_type in ("Conv", "ConvTranspose") and readers[node.output[0]] == 1
    }
    return [
        str(node.name)
        for node in walk_nodes(model.graph)
        if node.op_type == "BatchNormalization" and node.input[0] in convolutions
    ]
