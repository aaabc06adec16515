"""Sessions of onnxruntime on the build host: one place for their options.

The loader opens its sessions itself (`runtime.session`), since it ships without this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgepack.onnx_tools.writer import serialised
from edgepack.runtime.session.onnx_session import LITERAL, import_engine

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

Optimization = Literal["none", "basic", "extended", "all"]
"""How far onnxruntime rewrites the graph: not at all; by folding constants, which changes no
result; by fusions that every CPU gets; by all that this CPU supports."""

# onnxruntime prints warnings and errors of this severity: fatal ones, since others are raised.
SEVERITY = 4


class TensorInfo(Protocol):
    """Input or output of a session; `type` reads "tensor(float16)"."""

    name: str
    type: str


class Session(Protocol):
    """Methods of `onnxruntime.InferenceSession` that edgepack calls."""

    def get_inputs(self) -> Sequence[TensorInfo]:
        """Return the inputs in order."""

    def get_outputs(self) -> Sequence[TensorInfo]:
        """Return the outputs in order."""

    def get_overridable_initializers(self) -> Sequence[TensorInfo]:
        """Return the initializers that can be fed."""

    def run(
        self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """Return the outputs of these names; None stands for all."""

    def end_profiling(self) -> str:
        """Write the profile, and return the path of its file."""


def create_session(
    model: ModelProto | bytes | str | Path,
    *,
    optimization: Optimization = "all",
    threads: int = 0,
    literal: bool = False,
    arena: bool = True,
    save_to: Path | None = None,
    profile_to: Path | None = None,
) -> Session:
    """Create a quiet session on the CPU whose threads sleep while they wait.

    Args:
        model: an ONNX model, its bytes, or the path of its file.
        optimization: how far onnxruntime rewrites the graph.
        threads: threads within one operator; 0 leaves the number to onnxruntime.
        literal: compute quantized operators in float, for a CPU that stands in for a GPU.
        arena: False frees buffers after each call, for a lower peak of memory.
        save_to: file for the graph as onnxruntime rewrote it.
        profile_to: start of the path of a profile, which `end_profiling` completes.

    Raises whatever onnxruntime raises for a model that it cannot load: its exceptions share no base
    class. `graph.Runner` turns them into GraphError.
    """
    ort = import_engine()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = SEVERITY
    options.enable_cpu_mem_arena = arena
    # Threads that spin while they wait take the cores from other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if literal:
        options.add_session_config_entry(LITERAL, "1")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[optimization]
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    source: str | bytes
    if isinstance(model, (str, Path)):
        source = str(model)
    elif isinstance(model, bytes):
        source = model
    else:
        source = serialised(model)
    session: Session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session
