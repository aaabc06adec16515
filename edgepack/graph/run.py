"""Run an ONNX model on the host, with onnxruntime's CPU provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import GraphError
from edgepack.runtime.session.onnx_session import LITERAL, import_engine

_NODE = re.compile(r"while running (\S+) node\. Name:\s?'([^']*)'")
_STATUS = re.compile(r"Status Message:\s*(.*)", re.DOTALL)
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class Runner:
    """One onnxruntime session: sequential, on the CPU, quiet.

    Args:
        model: an ONNX model, its bytes, or the file that holds it.
        threads: threads within one operator; 0 leaves the number to onnxruntime.
        optimize: whether onnxruntime may rewrite the graph; without it every node runs as
            written, and an error names the node as the graph does.
        literal: compute quantized operators in float, as where a CPU stands in for a GPU.

    Raises:
        GraphError: `graph-rejected` where onnxruntime does not load the model.
    """

    def __init__(
        self, model: Any, threads: int = 0, optimize: bool = True, literal: bool = False
    ) -> None:
        ort = import_engine()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # fatal only: what fails is raised, and printed once
        # Threads that turn while they wait take the cores from whatever else runs here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if literal:
            options.add_session_config_entry(LITERAL, "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if isinstance(model, (str, Path)):
            source: str | bytes = str(model)
        else:
            source = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session = ort.InferenceSession(
                source, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class but this one
            raise GraphError(
                "graph-rejected",
                "onnxruntime does not load the graph",
                why=brief_reason(error),
                hint="check the file with onnx.checker.check_model(path, full_check=True)",
            ) from error
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs in their order. Arrays that are no inputs of the graph are left out.

        Raises:
            GraphError: `input-missing`, or `run-failed` with onnxruntime's reason.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise GraphError(
                "input-missing",
                f"the graph was not given its input {', '.join(missing)}",
                why=f"it takes {', '.join(self.input_names)}; given: {', '.join(inputs) or 'none'}",
                hint="give one array to each input",
            )
        try:
            outputs = self._session.run(None, {name: inputs[name] for name in self.input_names})
        except Exception as error:  # as above
            fed = ", ".join(
                f"{n} {inputs[n].dtype}{list(inputs[n].shape)}" for n in self.input_names
            )
            raise GraphError(
                "run-failed",
                "the graph does not run on these inputs",
                why=f"{brief_reason(error)}\ninputs: {fed}",
                hint="compare the inputs' shapes and types with those that the model takes",
            ) from error
        return tuple(np.asarray(output) for output in outputs)


def brief_reason(error: BaseException) -> str:
    """onnxruntime's message in one line: the node, and what was wrong with it."""
    text = _PREFIX.sub("", str(error).strip())
    node, status = _NODE.search(text), _STATUS.search(text)
    if node and status:
        # onnxruntime puts its own source file and line before the sentence.
        sentence = re.sub(r"^\S*\.(cc|h):\d+ .*?(?=[A-Z][a-z]+ |\{)", "", status.group(1), count=1)
        text = f"{node.group(1)} {node.group(2)}: {sentence}"
    return " ".join(text.split())[:400]


def failing_node(text: str) -> str | None:
    """The name of the node that an error message of `brief_reason` begins with, if it does."""
    found = re.match(r"[A-Z]\w* (\S+): ", text)
    return found.group(1) if found else None
