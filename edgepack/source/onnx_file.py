"""Load an ONNX file: check it, read its inputs from the graph, and run it by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack import trial
from edgepack.errors import HostError, SourceError
from edgepack.normalize import (
    free_zero_axes,
    integer_operators,
    promote_floats,
    random_dropouts,
    set_lengths,
    sort_nodes,
    tensors,
    types_to_promote,
)
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.operators import operator
from edgepack.onnx_tools.sessions import create_session
from edgepack.onnx_tools.walk import model_nodes
from edgepack.onnx_tools.writer import serialised
from edgepack.runtime.session.onnx_session import import_engine
from edgepack.runtime.tensor import Tensor
from edgepack.source.digest import Digest
from edgepack.source.eager import Run, describe_feeds, in_order, proven
from edgepack.source.model import Source
from edgepack.source.onnx_bounds import check_unfolded
from edgepack.source.onnx_external import external_files
from edgepack.source.onnx_signature import check_outputs, graph_inputs, value_names
from edgepack.source.shards import total_bytes
from edgepack.spec.tensors import names_of

if TYPE_CHECKING:
    from types import ModuleType

    from onnx import ModelProto

MIN_ONNX = (1, 21)
"""The first onnx whose loader of external data has no known hole."""

# Domains that onnxruntime's CPU package has kernels for.
_KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc",
     "ai.onnx.preview", "ai.onnx.training", "ai.onnx.preview.training"}
)  # fmt: skip


def load_onnx(path: Path) -> Source:
    """Load an ONNX file.

    Raises:
        SourceError: source-corrupt, source-onnx-invalid, source-onnx-custom-operator,
            source-onnx-unsupported, source-onnx-inputs, source-onnx-outputs,
            source-output-unsupported, source-external-path, source-external-missing,
            source-external-range, source-weights-nonfinite, source-onnx-random,
            source-onnx-unfolds, source-onnx-memory, source-onnx-time, source-onnx-crash.
        HostError: onnx-too-old.
    """
    onnx = _import_onnx()
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has a different home in each version
        raise SourceError(
            "source-corrupt",
            f"{path.name} cannot be parsed as ONNX",
            why=str(error).strip() or type(error).__name__,
            hint="copy or download it again",
        ) from error
    files = external_files(path, model)
    _check_domains(path, model)
    set_lengths(model)
    size = total_bytes([path, *files.values()])
    # Bounds first: the checker and onnxruntime would unfold the functions.
    check_unfolded(path, model)
    trial.load(path.name, path, size)
    unsorted, freed = sort_nodes(model), free_zero_axes(model)
    try:
        onnx.checker.check_model(_with_data(onnx, path, model) if unsorted else str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise SourceError(
            "source-onnx-invalid",
            f"{path.name} is not valid ONNX",
            why=str(error).strip().splitlines()[0],
            hint="export it again; onnx.checker.check_model(PATH) must pass",
        ) from error
    _check_modes(path, model)
    inputs = graph_inputs(path, onnx, model)
    check_outputs(path, onnx, model)
    parameters = _check_values(path, onnx, model)
    digest = Digest("onnx")
    digest.file("model", path)
    digest.files("external", files.items())
    notes = [f"Loaded an ONNX model of {len(model.graph.node)} nodes, {_opsets(model)}."]
    if unsorted:
        notes.append("nodes sorted topologically; ONNX requires it and the file does not comply")
    if freed:
        notes.append("input axes of size 0 read as dynamic")
    run, promoted = _original(onnx, path, model, inputs, size, as_file=not freed)
    if promoted:
        notes.append(f"{' and '.join(promoted)} computed in float32, which onnxruntime has")
    integers = integer_operators(model)
    if integers:
        notes.append(f"already quantized: {', '.join(integers)}")
    if files:
        notes.append(f"weights in {', '.join(sorted(files))}")
    return Source(
        path=path,
        kind="onnx",
        digest=digest.hexdigest(),
        module=None,
        program=None,
        onnx=path,
        inputs=inputs,
        output_names=tuple(value_names(model.graph.output)),
        output_kind=None,
        run=run,
        parameters=parameters,
        bytes=size,
        notes=tuple(notes),
    )


def _with_data(onnx: ModuleType, path: Path, model: ModelProto) -> ModelProto:
    """Return a copy of a model that includes its external data."""
    copy = copied(model)
    onnx.load_external_data_for_model(copy, str(path.parent))
    return copy


def _original(
    onnx: ModuleType,
    path: Path,
    model: ModelProto,
    inputs: tuple[Tensor, ...],
    size: int,
    as_file: bool,
) -> tuple[Run, tuple[str, ...]]:
    """Return `Source.run`, and the types that it computes in float32 for lack of kernels.

    onnxruntime has no bfloat16 on the CPU, and float64 in a few operators only.

    Args:
        onnx: the package.
        path: the file.
        model: its ModelProto, without external data.
        inputs: the inputs in their order.
        size: bytes of the model with its external data.
        as_file: True to let onnxruntime read the file, False to let it read `model`.
    """
    from onnx import inliner

    if not _has_bfloat16(model):
        graph = str(path) if as_file else serialised(_with_data(onnx, path, model))
        try:
            return _onnx_run(path, graph, inputs, size), ()
        except SourceError:
            if not types_to_promote(model, for_passes=False):
                raise
    inlined = inliner.inline_local_functions(_with_data(onnx, path, model))
    types = types_to_promote(inlined, for_passes=False)
    promoted = serialised(promote_floats(inlined, types))
    return _onnx_run(path, promoted, inputs, size), types


def _has_bfloat16(model: ModelProto) -> bool:
    return "bfloat16" in types_to_promote(model, for_passes=False)


def _check_modes(path: Path, model: ModelProto) -> None:
    """Refuse a graph with random answers. Raises SourceError source-onnx-random."""
    random = random_dropouts(model)
    if random:
        raise SourceError(
            "source-onnx-random",
            f"{path.name} was exported in training mode: its answers are random",
            why=f"Dropout draws random numbers in {len(random)} nodes: {', '.join(random[:5])}",
            hint="export it again after model.eval()",
        )


def _import_onnx() -> ModuleType:
    import onnx
    import onnx.checker

    version = tuple(map(int, onnx.__version__.split(".")[:2]))
    if version < MIN_ONNX:
        raise HostError(
            "onnx-too-old",
            f"onnx {onnx.__version__} has known holes in loading external data",
            why="CVE-2026-34445 and others are fixed in 1.21.0",
            hint="pip install 'onnx>=1.21'",
        )
    package: ModuleType = onnx
    return package


def _opsets(model: ModelProto) -> str:
    return ", ".join(f"{opset.domain or 'opset'} {opset.version}" for opset in model.opset_import)


def _check_domains(path: Path, model: ModelProto) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    operators = {(node.domain, node.op_type) for node in model_nodes(model)}
    unknown = []
    for domain, name in operators - functions:
        if domain not in _KNOWN_DOMAINS:
            unknown.append(f"{domain}::{name}")
    unknown.sort()
    if unknown:
        raise SourceError(
            "source-onnx-custom-operator",
            f"{path.name} uses operators that onnxruntime does not have",
            why=", ".join(unknown[:8]),
            hint="export the network with standard operators, or define its own as ONNX functions",
        )


def _check_values(path: Path, onnx: ModuleType, model: ModelProto) -> int:
    """Refuse NaN anywhere, and infinity in weights; return the number of trained values."""
    weights: set[str] = set()
    for node in model_nodes(model):
        # The trained inputs of a Conv are 1 and 2, weight and bias, and the bias may be absent.
        # Other inputs may be infinite: bounds of a Clip, masks.
        for index in operator(node.op_type).trained:
            if index < len(node.input):
                weights.add(node.input[index])
    total = 0
    for tensor in tensors(model):
        if not _is_float(onnx, tensor.data_type):
            continue
        values = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent)).astype(np.float32)
        total += prod(tensor.dims)
        nans = int(np.isnan(values).sum())
        infinite = 0
        if tensor.name in weights:
            infinite = int(np.isinf(values).sum())
        if nans or infinite:
            raise SourceError(
                "source-weights-nonfinite",
                f"the weights of {path.name} are not all finite",
                why=f"{tensor.name or 'a constant'} of shape {list(tensor.dims)} has {nans} NaN "
                f"and {infinite} infinite values",
                hint="the training diverged, or the file is damaged: use an earlier one",
            )
    return total


def _is_float(onnx: ModuleType, data_type: int) -> bool:
    proto = onnx.TensorProto
    return data_type in (proto.FLOAT, proto.DOUBLE, proto.FLOAT16, proto.BFLOAT16)


def _onnx_run(path: Path, model: str | bytes, inputs: tuple[Tensor, ...], size: int) -> Run:
    """Return `Source.run` by onnxruntime on the CPU; the session is opened now, to fail early.

    Args:
        path: the file, for errors.
        model: the file's name or a serialised model.
        inputs: the inputs in their order.
        size: bytes of the model with its external data.

    The first call runs in a separate process first, with limits.

    Raises:
        SourceError: source-onnx-unsupported if onnxruntime cannot take the model.
    """
    if isinstance(model, bytes):
        size = max(size, len(model))
        trial.load(path.name, model, size)
    try:
        # Folding constants changes no answer; fusing and reordering may, and this is the reference.
        session = create_session(model, optimization="basic")
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise SourceError(
            "source-onnx-unsupported",
            f"onnxruntime {import_engine().__version__} cannot run {path.name}",
            why=str(error).strip().splitlines()[0],
            hint="export it with an older opset, or with standard operators",
        ) from error
    names = names_of(inputs)
    is_tested = False

    def call(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        nonlocal is_tested
        arrays = in_order(feeds, names)
        if not is_tested:
            trial.run(path.name, model, size, arrays)
            is_tested = True
        try:
            return tuple(map(np.asarray, session.run(None, arrays)))
        except Exception as error:
            raise SourceError(
                "source-run-failed",
                "the original model cannot be run on the samples",
                why=f"{str(error).strip().splitlines()[0]}\nfed: {describe_feeds(arrays)}",
                hint="check the shapes and types of the samples",
            ) from error

    return proven(call)
