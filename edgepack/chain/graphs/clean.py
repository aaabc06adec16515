"""What is left over after an edit."""

from __future__ import annotations

import onnx
from onnx import numpy_helper


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Drop initializers that nothing reads any more."""
    used = {value.name for value in graph.output}
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            used.update(node.input)
            for item in node.attribute:
                stack.extend([item.g] if item.HasField("g") else item.graphs)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) != len(graph.initializer):
        copies = [numpy_helper.from_array(numpy_helper.to_array(t), t.name) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
