"""Removal of what an edit leaves without a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.onnx_tools.copies import replace_items
from edgepack.onnx_tools.walk import used_names, walk_graphs

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto


def remove_unused_initializers(graph: GraphProto, rewrite: bool = True) -> int:
    """Remove initializers that nothing reads, in place and in subgraphs; return their number.

    Args:
        graph: of a model.
        rewrite: if any is removed, store the others anew: as raw bytes, with name and shape alone.
    """
    # Subgraphs read initializers of the graphs around them, so all names count for all graphs.
    used = used_names(graph)
    removed = 0
    for inner in walk_graphs(graph):
        read = [tensor for tensor in inner.initializer if tensor.name in used]
        unread = len(inner.initializer) - len(read)
        if not unread:
            continue
        if rewrite:
            read = list(map(_rewritten, read))
        replace_items(inner.initializer, read)
        removed += unread
    return removed


def _rewritten(tensor: TensorProto) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
