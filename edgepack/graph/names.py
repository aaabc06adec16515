"""Readable node names, and removal of everything that reveals the build machine."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from edgepack.onnx_tools.copies import replace_items
from edgepack.onnx_tools.names import numbered
from edgepack.onnx_tools.operators import Trait, having
from edgepack.onnx_tools.walk import (
    by_name,
    count_readers,
    fed_inputs,
    names_of,
    walk_graphs,
    walk_nodes,
)

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Since this IR version, an initializer need not be listed as an input.
OLDEST_IR_VERSION = 4
_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_SCOPE = "_empty_nn_module_stack"
_GENERATED_WEIGHT = re.compile(r"^(val_\d+|_v_\d+|onnx::\w+)$")
_GENERATED = re.compile(r"^(node_|n\d+(_\d+)?$|/?(Constant|Cast|Shape)_?\d*$)|^$")


def name_nodes(model: ModelProto) -> None:
    """Name every node after the torch module that it comes from, in place.

    `blocks.3.conv1` is the layer itself (the one convolution, product or recurrence of its
    module); other nodes of the module are `blocks.3.conv1/Add`. The module is derived from the
    weight's name if only this node reads the weight (a folded BatchNorm leaves the convolution
    in the BatchNorm's scope), else from the exporter's metadata. Nodes without either keep their
    names. Names are unique over all subgraphs, and equal in every run on the same model.
    """
    readers = count_readers(model.graph)
    weights: set[str] = set()
    for graph in walk_graphs(model.graph):
        weights |= names_of(graph.initializer)
    used: set[str] = set()
    proposals: list[tuple[NodeProto, str]] = []
    for node in walk_nodes(model.graph):
        module = _weight_owner(node, weights, readers) or _scope(node)
        if (
            module
            and not weights.isdisjoint(node.input[1:2])
            and node.op_type in having(Trait.LAYER)
        ):
            proposals.append((node, module))
        elif module:
            proposals.append((node, f"{module}/{node.op_type}"))
        elif _GENERATED.match(node.name):
            proposals.append((node, node.op_type))
        else:
            proposals.append((node, node.name))
    for node, name in proposals:
        node.name = numbered(name, used)
    _name_weights(model, readers)


def strip_metadata(model: ModelProto) -> None:
    """Remove doc strings, metadata and stale shapes in place.

    torch's exporter writes stack traces with the build machine's paths into every node. Stale
    `value_info` makes quantizers and shape inference fail with "Inferred shape and existing
    shape differ"; nothing needs it, because it can always be inferred anew.
    """
    # A stack trace reveals user names, and makes the bytes differ between two machines.
    for message in [model, *model.functions]:
        message.doc_string = ""
        del message.metadata_props[:]
    model.producer_name, model.producer_version, model.domain = "edgepack", "", ""
    model.model_version = 0
    for graph in walk_graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for part in [*graph.node, *graph.initializer, *graph.input, *graph.output]:
            part.doc_string = ""
            del part.metadata_props[:]
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = ""
                if attribute.HasField("t"):
                    attribute.t.doc_string = ""


def drop_given_inputs(model: ModelProto) -> None:
    """Turn inputs with an initializer into plain constants, in place.

    Before IR version 4 every weight was also an input. Such inputs are not inputs of the model for
    `signature`, yet readers of the graph do not recognize them as constants.
    """
    inputs = fed_inputs(model.graph)
    if len(inputs) == len(model.graph.input):
        return
    replace_items(model.graph.input, inputs)
    model.ir_version = max(model.ir_version, OLDEST_IR_VERSION)


def lift_constants(model: ModelProto) -> None:
    """Turn `Constant` nodes that hold numbers into initializers, in place, in every graph."""
    for graph in walk_graphs(model.graph):
        for node in list(graph.node):
            tensor = constant_tensor(node)
            if tensor is not None:
                added = graph.initializer.add()
                added.CopyFrom(tensor)
                added.name = node.output[0]
                graph.node.remove(node)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a `Constant` node; None for other nodes, strings and sparse tensors."""
    import onnx

    if node.op_type != "Constant":
        return None
    (attribute,) = node.attribute
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        # Python's float and int would become float64 and, on some systems, int32.
        kind = np.float32 if "float" in attribute.name else np.int64
        values = onnx.helper.get_attribute_value(attribute)
        return onnx.numpy_helper.from_array(np.asarray(values, kind))
    return None


def _weight_owner(node: NodeProto, weights: set[str], readers: Counter[str]) -> str | None:
    if not _has_matrix(node):
        return None
    # "blocks.3.conv1.weight" belongs to "blocks.3.conv1", unless several nodes share it.
    for name in node.input[:2]:
        if name in weights and name.endswith(".weight") and readers[name] == 1:
            return str(name).removesuffix(".weight")
    return None


def _scope(node: NodeProto) -> str | None:
    """Return the module's dotted path in the exporter's metadata.

    For example `['', 'a', 'a.b', 'conv2d']` yields "a.b".
    """
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            if len(scopes) < 2:
                return ""
            # The last scope is the operator; nodes that the exporter inserted have no module.
            path = str(scopes[-2])
            return None if path.startswith(_NO_SCOPE) else path
    return None


def _has_matrix(node: NodeProto) -> bool:
    """Return True for a convolution or a product, whose weights and bias are single tensors."""
    return node.op_type in having(Trait.LAYER) - having(Trait.RECURRENT)


def _name_weights(model: ModelProto, readers: Counter[str]) -> None:
    """Name weights that the exporter transposed or folded after their layer again, in place."""
    used: set[str] = set()
    for node in walk_nodes(model.graph):
        used.update(node.input, node.output)
    initializers = by_name(model.graph.initializer)
    for node in model.graph.node:
        if not _has_matrix(node):
            continue
        for position, part in ((1, "weight"), (2, "bias")):
            # "val_12" becomes "blocks.3.conv1.weight", unless another value has that name.
            if len(node.input) <= position:
                continue
            old, new = node.input[position], f"{node.name}.{part}"
            generated = _GENERATED_WEIGHT.match(old) is not None
            if old in initializers and generated and readers[old] == 1 and new not in used:
                initializers[old].name = new
                node.input[position] = new
                used.add(new)
