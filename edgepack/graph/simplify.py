"""Simplification of exported graphs without a change of their results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from edgepack import trial
from edgepack.errors import EdgepackError, GraphError
from edgepack.graph.agreement import disagreement
from edgepack.graph.names import (
    drop_given_inputs,
    lift_constants,
    name_nodes,
    strip_metadata,
)
from edgepack.graph.quiet import muted
from edgepack.graph.run import Runner
from edgepack.ledger import PassResult
from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.copies import copied, replace_items
from edgepack.onnx_tools.limits import NEWEST_IR, require_size
from edgepack.onnx_tools.operators import Trait, having
from edgepack.onnx_tools.walk import (
    count_readers,
    fed_inputs,
    is_standard,
    names_of,
    nodes_of,
    walk_nodes,
)
from edgepack.onnx_tools.writer import serialised

if TYPE_CHECKING:
    from onnx import ModelProto

SKIPPED = ("fuse_matmul_add_bias_into_gemm_batched", "fuse_attention", "fuse_gqa")
"""Harmful passes of onnxsim. The first wraps each linear layer of a transformer in Reshape, Shape,
Slice and Concat to turn it into a Gemm, though onnxruntime fuses the layer anyway. The others turn
an attention into one operator of onnxruntime, which TensorRT does not have, and which hides its
layers from quantization and measurement."""

GROWTH, SLACK = 1.01, 1024
"""Accepted growth of a graph by simplification: this factor, plus bytes for names and shapes. If
folding constants (Tile, Expand, a product of two small matrices) adds more, they stay unfolded:
onnxruntime folds them when it loads the model."""
UNFOLDED: tuple[Mapping[str, Any], ...] = (
    {"tensor_size_threshold": "1KB"},
    {"skip_constant_folding": True},
)
"""Options of onnxsim that fold less: first no large Tile, Expand and ConstantOfShape, then none."""
PAIRS, FASTER = 25, 0.75
"""Pairs of calls to time, and the share of them that a larger graph must win to be kept."""


def simplify(
    model: ModelProto, example: Mapping[str, np.ndarray] | None = None, *, untrusted: bool = False
) -> PassResult[ModelProto]:
    """Fold constants and BatchNorm, inline functions, and strip the graph of metadata.

    The result passes onnx's full check, loads in onnxruntime, and has the same bytes in every
    run. onnxsim does the folding; if it fails, or changes the graph's outputs on the example, its
    result is dropped and a note gives the reason. If folding enlarges the graph, less is folded;
    a larger graph is kept only if it is measurably faster.

    Args:
        model: an `onnx.ModelProto`; it is not changed.
        example: one array per input, to compare the graphs before and after; without it only
            the structure is checked.
        untrusted: True if the graph comes from a third party; onnxsim then runs in a child process
            with limits.

    Raises:
        GraphError: `graph-invalid` if the graph does not pass onnx's check, `graph-rejected` if
            onnxruntime does not load it, `graph-too-large`.
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
        if note:
            notes.append(note)
    ordered = _ordered(folded)
    before, after = _count(model), _count(ordered)
    if folded is not tidy:
        # Compare operators, not totals: ten nodes may have become ten others.
        if before != after:
            notes.append(f"{sum(before.values())} nodes became {sum(after.values())}.")
        else:
            notes.append(f"No nodes removed: all {sum(after.values())} are needed.")
    unfolded_norms = _unfolded_norms(ordered)
    if unfolded_norms:
        listed = ", ".join(unfolded_norms[:5])
        notes.append(f"{len(unfolded_norms)} BatchNormalization could not be folded: {listed}.")
    return PassResult(
        ordered,
        changed=serialised(ordered) != serialised(model),
        notes=tuple(notes),
        details={
            "nodes_before": sum(before.values()),
            "nodes_after": sum(after.values()),
            "bytes_before": model.ByteSize(),
            "bytes_after": ordered.ByteSize(),
            "onnxsim": folded is not tidy,
            "batch_norms_left": len(unfolded_norms),
        },
    )


def require_valid(model: ModelProto) -> None:
    """Raise GraphError `graph-invalid` if onnx's full check (with shapes) rejects the model."""
    reason = check_failure(model)
    if reason:
        raise GraphError(
            "graph-invalid",
            "the graph is not valid ONNX",
            why=reason,
            hint="export the model again with a recent exporter",
        )


def check_failure(model: ModelProto) -> str | None:
    """Return the reason in one line why onnx rejects the model, None if it is valid."""
    import onnx
    import onnx.shape_inference

    try:
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError
    ) as error:  # fmt: skip
        return " ".join(str(error).split())[:300]
    return None


def _tidy(model: ModelProto) -> None:
    drop_given_inputs(model)
    lift_constants(model)
    name_nodes(model)
    strip_metadata(model)
    remove_unused_initializers(model.graph, rewrite=False)
    model.ir_version = min(model.ir_version, NEWEST_IR)


def _inlined(model: ModelProto) -> ModelProto:
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _without_growth(
    tidy: ModelProto, folded: ModelProto, example: Mapping[str, np.ndarray] | None, untrusted: bool
) -> tuple[ModelProto, str]:
    """Return a simplified graph that is not larger, or is faster, and a note on any growth.

    Args:
        tidy: the graph before folding.
        folded: the same graph, folded and fused.
        example: one array per input.
        untrusted: as in `simplify`.
    """
    # A graph of 1,000,000 bytes may grow to 1,011,024.
    limit, size = GROWTH * tidy.ByteSize() + SLACK, folded.ByteSize()
    if size <= limit:
        return folded, ""
    growth = f"Simplified, the graph grew from {tidy.ByteSize():,} to {size:,} bytes"
    # Fold less and less, and take the first graph that is small enough. The smallest of all is the
    # candidate for the comparison of speed below.
    smallest, weighted = folded, _weighted(folded)
    for options in UNFOLDED:
        candidate, _ = _folded(tidy, example, untrusted, **options)
        if candidate is None or candidate.ByteSize() >= smallest.ByteSize():
            continue
        if _weighted(candidate) < weighted:
            # Weights in fp16 behind a Cast, for example, cannot be read, and so not quantized.
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
    # The remaining growth comes from fusion: two convolutions that share their weights get one copy
    # each when different BatchNormalizations are folded into them.
    if example is not None and _faster(smallest, tidy, example):
        outcome = f"it is kept at {smallest.ByteSize():,} bytes, since its nodes run faster"
        return smallest, f"{growth}; {outcome}."
    return tidy, f"{growth} and runs no faster: it stays unsimplified."


def _weighted(model: ModelProto) -> int:
    """Count the layers whose weights are initializers."""
    # The second input of a MatMul may also be an activation, as in attention; it does not count.
    constants = names_of(model.graph.initializer)
    layers = nodes_of(model.graph, *having(Trait.LAYER))
    return sum(node.input[1] in constants for node in layers)


def _faster(candidate: ModelProto, baseline: ModelProto, example: Mapping[str, np.ndarray]) -> bool:
    """Return True if the candidate wins enough pairs of calls against the baseline.

    Both run node by node as written, as a quantized graph would. Other load on the machine slows
    both calls of a pair.
    """
    first = Runner(candidate, threads=1, optimize=False)
    second = Runner(baseline, threads=1, optimize=False)
    # 25 pairs with a share of 0.75 make 19 wins; a coin reaches them once in some 140 trials.
    wins = 0
    for _ in range(PAIRS):
        wins += _seconds(first, example) < _seconds(second, example)
    return wins >= FASTER * PAIRS


def _seconds(runner: Runner, example: Mapping[str, np.ndarray]) -> float:
    started = time.perf_counter()
    runner.run(example)
    return time.perf_counter() - started


def _folded(
    model: ModelProto, example: Mapping[str, np.ndarray] | None, untrusted: bool, **options: Any
) -> tuple[ModelProto | None, str]:
    """Return onnxsim's result and "", or None and the reason for dropping it."""
    # onnxsim is C++ code, which a malformed file of unknown origin may crash.
    fold = _fold_in_child if untrusted else _fold
    try:
        folded = fold(model, {"skipped_optimizers": list(SKIPPED), **_unproven(), **options})
    except EdgepackError as error:
        return None, f"{error.what}: {error.why}"
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its passes in C++ raise
        # onnx puts the context of an error, which may be long, behind "==>".
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
    foreign = set()
    for domain, kind in _operators(folded) - _operators(model):
        # Example of such an operator: com.microsoft.Gelu, which only onnxruntime runs.
        if domain:
            foreign.add(f"{domain}.{kind}")
    if foreign:
        return None, f"it inserted operators that ONNX does not have ({', '.join(sorted(foreign))})"
    # onnxsim may drop an unused input, which callers still pass.
    if _interface(folded) != _interface(model):
        return None, "it changed the inputs or outputs"
    if example is not None:
        reference = Runner(model).run(example)
        changed = disagreement(reference, runner.run(example), runner.output_names)
        if changed:
            return None, f"it changed what the graph computes ({changed})"
    return folded, ""


def _unproven() -> dict[str, bool]:
    """Return the option that keeps onnxsim from proving its result with z3, if it can.

    Releases before 0.8, the last for Python 3.10, neither prove nor know the option.
    """
    if Version(metadata.version("onnxsim")) < Version("0.8"):
        return {}
    return {"certify": False}


def _fold(model: ModelProto, options: Mapping[str, Any]) -> ModelProto:
    import onnxsim

    with muted():
        folded, _ = onnxsim.simplify(model, **options)
    return folded


def _fold_in_child(model: ModelProto, options: Mapping[str, Any]) -> ModelProto:
    import onnx

    return onnx.load_model_from_string(trial.fold(serialised(model), options))


def _operators(model: ModelProto) -> set[tuple[str, str]]:
    """Return domain and type of every node; "" is ONNX's default domain."""
    operators: set[tuple[str, str]] = set()
    for node in walk_nodes(model.graph):
        domain = "" if is_standard(node) else str(node.domain)
        operators.add((domain, str(node.op_type)))
    return operators


def _interface(model: ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    outputs = tuple(value.name for value in model.graph.output)
    return tuple(value.name for value in fed_inputs(model.graph)), outputs


def _ordered(model: ModelProto) -> ModelProto:
    """Return a copy with its initializers sorted: onnxsim's order is that of a hash table."""
    model = copied(model)
    initializers = sorted(model.graph.initializer, key=lambda value: str(value.name))
    replace_items(model.graph.initializer, initializers)
    return model


def _count(model: ModelProto) -> Counter[str]:
    return Counter(str(node.op_type) for node in walk_nodes(model.graph))


def _unfolded_norms(model: ModelProto) -> list[str]:
    """Return BatchNormalization nodes that are the only reader of a convolution's result.

    Each of them should have been folded into its convolution.
    """
    readers = count_readers(model.graph)
    convolutions: set[str] = set()
    for node in nodes_of(model.graph, "Conv", "ConvTranspose"):
        if readers[node.output[0]] == 1:
            convolutions.add(node.output[0])
    unfolded: list[str] = []
    for node in nodes_of(model.graph, "BatchNormalization"):
        if node.input[0] in convolutions:
            unfolded.append(str(node.name))
    return unfolded
