"""The graph in two types: each tensor in the one that its maker makes, Casts where they meet."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.chain.graphs.clean import remove_unused_initializers
from edgepack.chain.graphs.names import FreeNames
from edgepack.chain.graphs.view import captured_names
from edgepack.chain.half.graph import Graph
from edgepack.chain.half.operators import FLOAT_INPUTS
from edgepack.chain.half.place import Placement


def emit(
    model: onnx.ModelProto, graph: Graph, placement: Placement, own: Iterable[str]
) -> tuple[onnx.ModelProto, int]:
    """The model with the placed nodes in fp16, and the number of Casts that were put in.

    `own` are the tensors that nodes of the model made in fp16 before.
    """
    emitter = _Emitter(model, graph, placement, own)
    return emitter.model(), emitter.casts


class _Emitter:
    """A tensor keeps its name in float32, its fp16 form is called after it.

    A constant that is read as fp16 alone keeps its name there, too.
    """

    def __init__(
        self, model: onnx.ModelProto, graph: Graph, placement: Placement, own: Iterable[str]
    ) -> None:
        self.graph, self.view, self.placement = graph, graph.view, placement
        self.own = tuple(own)
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        self.nodes: list[onnx.NodeProto] = []
        self.casts = 0
        self.names = FreeNames(self.view)
        # The fp16 form of a tensor, and which tensors are there in float32, as the nodes go by.
        self.halves: dict[str, str] = {}
        self.floats = set(self.view.inputs)
        self._constants()

    def _constants(self) -> None:
        """Store what is read as fp16 as fp16, and as float32 beside it where that is read too."""
        read_half: set[str] = set()
        read_float = {*self.view.outputs, *self.view.captured}
        for index, node in enumerate(self.view.nodes):
            for place, name in enumerate(node.input):
                as_half = self._becomes_half(index, place)
                (read_half if as_half else read_float).add(name)
        for tensor in list(self.result.graph.initializer):
            name = str(tensor.name)
            if name not in read_half or not self.view.is_constant(name):
                self.floats.add(name)
                continue
            stored = _as_half(tensor)
            if name in read_float:
                self.floats.add(name)
                stored.name = self.names.tensor(f"{name}_half")
                self.result.graph.initializer.append(stored)
            else:
                tensor.CopyFrom(stored)
            self.halves[name] = str(stored.name)

    def _becomes_half(self, index: int, place: int) -> bool:
        node = self.view.nodes[index]
        if index not in self.placement.half or place in FLOAT_INPUTS.get(node.op_type, ()):
            return False
        return node.input[place] in self.graph.inputs(index)

    def model(self) -> onnx.ModelProto:
        for index, node in enumerate(self.view.nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for place, name in enumerate(node.input):
                if self._becomes_half(index, place):
                    copy.input[place] = self._half(name)
                elif self.graph.indifferent(index) and name not in self.floats:
                    copy.input[place] = self.halves.get(name, name)
                else:
                    self._float(name)
            for name in captured_names(node):
                self._float(name)
            if index in self.placement.half:
                self._make_half(copy)
            else:
                self.floats.update(node.output)
            self.nodes.append(copy)
        for value in self.result.graph.output:
            self._float(value.name)
        graph = self.result.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        made = [half for name, half in self.halves.items() if not self.view.is_constant(name)]
        for name in (*self.own, *made):
            if name not in self.view.outputs:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
                graph.value_info.append(value)
        remove_unused_initializers(graph)
        return self.result

    def _make_half(self, node: onnx.NodeProto) -> None:
        for place, name in enumerate(node.output):
            if name in self.graph.floats:
                self.halves[name] = node.output[place] = self.names.tensor(f"{name}_half")
            else:
                self.floats.add(name)
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to":
                item.i = TensorProto.FLOAT16
            elif node.op_type == "ConstantOfShape" and item.name == "value":
                item.t.CopyFrom(_as_half(item.t))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            # What it gives where nothing is said: a float32 zero.
            zero = numpy_helper.from_array(np.zeros(1, np.float16))
            node.attribute.append(helper.make_attribute("value", zero))

    def _half(self, name: str) -> str:
        """The fp16 form of a tensor, by a Cast where it was made in float32."""
        if name not in self.halves:
            self.halves[name] = self.names.tensor(f"{name}_half")
            self._cast(name, self.halves[name], TensorProto.FLOAT16)
        return self.halves[name]

    def _float(self, name: str) -> None:
        """See to it that a tensor that was made in fp16 is there in float32, too."""
        if name in self.halves and name not in self.floats:
            self._cast(self.halves[name], name, TensorProto.FLOAT)
            self.floats.add(name)

    def _cast(self, source: str, output: str, kind: int) -> None:
        written = f"{source}_to_{'half' if kind == TensorProto.FLOAT16 else 'float'}"
        name = self.names.node(written)
        self.nodes.append(helper.make_node("Cast", [source], [output], name=name, to=kind))
        self.casts += 1


def _as_half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)
