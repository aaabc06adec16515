"""Make outputs of a LayerNormalization scalable if other nodes than layers read them.

In networks that normalize after the sum (BERT), the next sum reads the output too, and cannot be
scaled. A Mul by ones before such readers can undo the factors. It is removed again if no factor
was chosen.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.copies import copied, replace_items
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.layers import LINEAR

FACTOR = "_restored_factor"


def insert_restorers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with a Mul by ones between a LayerNormalization and its other readers."""
    result = copied(model)
    view = GraphView(result)
    nodes = []
    for node in view.nodes:
        nodes.append(node)
        name = node.output[0]
        width = (view.shapes.get(name) or (None,))[-1]
        is_visible = name in view.outputs or name in view.captured
        if node.op_type != "LayerNormalization" or is_visible or not isinstance(width, int):
            continue
        # If all readers are layers they take the factors themselves; if none is, there is nothing
        # to scale for.
        readers = [view.nodes[index] for index in view.readers.get(name, [])]
        others = [r for r in readers if r.op_type not in LINEAR or r.input[0] != name]
        if not others or len(others) == len(readers):
            continue
        factor, restored = f"{name}{FACTOR}", f"{name}_restored"
        nodes.append(helper.make_node("Mul", [name, factor], [restored], name=restored))
        result.graph.initializer.append(numpy_helper.from_array(np.ones(width, np.float32), factor))
        for reader in others:
            for slot, read in enumerate(reader.input):
                if read == name:
                    reader.input[slot] = restored
    return _with_nodes(result, nodes)


def remove_idle_restorers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the Mul nodes that multiply by one."""
    view = GraphView(model)
    idle = {}
    for node in view.nodes:
        if len(node.input) != 2 or not node.input[1].endswith(FACTOR):
            continue
        factor = view.constant(node.input[1])
        if factor is not None and (factor == 1).all():
            idle[node.output[0]] = node.input[0]
    result = copied(model)
    nodes = [node for node in result.graph.node if node.output[0] not in idle]
    for node in nodes:
        for slot, read in enumerate(node.input):
            if read in idle:
                node.input[slot] = idle[read]
    return _with_nodes(result, nodes)


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Replace the nodes of a model, and remove initializers that nothing reads."""
    replace_items(model.graph.node, nodes)
    remove_unused_initializers(model.graph)
    return model
