"""Removal of what an edit leaves without a reader."""

from __future__ import annotations

import onnx
from onnx import numpy_helper


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove initializers that no node reads, those of subgraphs included."""
    used = {value.name for value in graph.output}
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            used.update(node.input)
            for item in node.attribute:
                stack.extend([item.g] if item.HasField("g") else item.graphs)
    read = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(read) != len(graph.initializer):
        copies = [numpy_helper.from_array(numpy_helper.to_array(t), t.name) for t in read]
        del graph.initializer[:]
        graph.initializer.extend(copies)
