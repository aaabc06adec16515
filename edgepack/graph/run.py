"""Run an ONNX model on the host, with onnxruntime's CPU provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import GraphError
from edgepack.onnx_tools.sessions import Optimization, create_session

if TYPE_CHECKING:
    from onnx import ModelProto

_NODE = re.compile(r"while running (\S+) node\. Name:\s?'([^']*)'")
_STATUS = re.compile(r"Status Message:\s*(.*)", re.DOTALL)
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class Runner:
    """Sequential and quiet onnxruntime session on the CPU.

    Args:
        model: an ONNX model, its bytes, or the path of its file.
        threads: threads within one operator; 0 leaves the number to onnxruntime.
        optimize: let onnxruntime rewrite the graph. Without it every node runs as written, and
            errors name nodes as the graph does.
        literal: compute quantized operators in float, for a CPU that stands in for a GPU.

    Raises:
        GraphError: `graph-rejected` if onnxruntime does not load the model.
    """

    def __init__(
        self,
        model: ModelProto | bytes | str | Path,
        threads: int = 0,
        optimize: bool = True,
        literal: bool = False,
    ) -> None:
        optimization: Optimization = "all" if optimize else "none"
        try:
            self._session = create_session(
                model, optimization=optimization, threads=threads, literal=literal
            )
        except Exception as error:  # onnxruntime's errors have no other base class
            raise GraphError(
                "graph-rejected",
                "onnxruntime does not load the graph",
                why=brief_reason(error),
                hint="check the file with onnx.checker.check_model(path, full_check=True)",
            ) from error
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the outputs in order. Arrays that are not inputs of the graph are ignored.

        Raises:
            GraphError: `input-missing`, or `run-failed` with onnxruntime's reason.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise GraphError(
                "input-missing",
                f"no array for the input {', '.join(missing)} of the graph",
                why=f"expected {', '.join(self.input_names)}; "
                f"received {', '.join(inputs) or 'none'}",
                hint="pass one array for each input",
            )
        feed = {name: inputs[name] for name in self.input_names}
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:  # as above
            # "image float32[1, 3, 224, 224], mask bool[1, 8]"
            shapes = []
            for name, array in feed.items():
                shapes.append(f"{name} {array.dtype}{list(array.shape)}")
            raise GraphError(
                "run-failed",
                "the graph does not run on these inputs",
                why=f"{brief_reason(error)}\ninputs: {', '.join(shapes)}",
                hint="compare the inputs' shapes and types with those that the model expects",
            ) from error
        return tuple(map(np.asarray, outputs))


def brief_reason(error: BaseException) -> str:
    """Shorten onnxruntime's message to one line: the node and its failure.

    For example `Conv blocks.3.conv1: Invalid input shape: {1,3}`.
    """
    text = _PREFIX.sub("", str(error).strip())
    node, status = _NODE.search(text), _STATUS.search(text)
    if node and status:
        # onnxruntime starts the sentence with its own source location: "conv.cc:61 Compute ...".
        sentence = re.sub(r"^\S*\.(cc|h):\d+ .*?(?=[A-Z][a-z]+ |\{)", "", status.group(1), count=1)
        text = f"{node.group(1)} {node.group(2)}: {sentence}"
    return " ".join(text.split())[:400]


def failing_node(text: str) -> str | None:
    """Return the node that a message of `brief_reason` begins with, None without one."""
    match = re.match(r"[A-Z]\w* (\S+): ", text)
    return match.group(1) if match else None
