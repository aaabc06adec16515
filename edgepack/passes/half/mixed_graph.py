"""Emit a graph of mixed types: each tensor in its producer's type, Casts between the two."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.operators import operator
from edgepack.onnx_tools.walk import captured_names
from edgepack.onnx_tools.writer import Writer
from edgepack.passes.half.candidates import Graph
from edgepack.passes.half.placement import Placement


def emit(
    model: onnx.ModelProto, graph: Graph, placement: Placement, existing: Iterable[str]
) -> tuple[onnx.ModelProto, int]:
    """Return the model with the placed nodes in fp16, and the number of inserted Casts.

    Args:
        model: float32 or quantized.
        graph: of that model.
        placement: nodes that become fp16.
        existing: tensors that are fp16 in the model already.
    """
    emitter = _Emitter(model, graph, placement, existing)
    return emitter.model(), emitter.casts


class _Emitter:
    """Copies the nodes in order and inserts a Cast before the first reader of the other type.

    A float32 tensor `x` keeps its name, and its fp16 form is called `x_half`. A constant that is
    read only as fp16 keeps its name as well.
    """

    def __init__(
        self, model: onnx.ModelProto, graph: Graph, placement: Placement, existing: Iterable[str]
    ) -> None:
        self.graph, self.view, self.placement = graph, graph.view, placement
        self.existing = tuple(existing)
        self.writer = Writer(model, self.view)
        self.casts = 0
        # Tensors that exist so far: float32 name -> fp16 name, and the float32 ones.
        self.halves: dict[str, str] = {}
        self.floats = set(self.view.inputs)
        self._store_constants()

    def _store_constants(self) -> None:
        """Store constants as fp16 if fp16 nodes read them, and as float32 if others do."""
        read_half: set[str] = set()
        read_float = {*self.view.outputs, *self.view.captured}
        for index, node in enumerate(self.view.nodes):
            for slot, name in enumerate(node.input):
                if self._is_read_as_half(index, slot):
                    read_half.add(name)
                else:
                    read_float.add(name)
        for tensor in list(self.writer.result.graph.initializer):
            name = str(tensor.name)
            if name not in read_half or not self.view.is_constant(name):
                self.floats.add(name)
                continue
            stored = _as_half(tensor)
            if name in read_float:
                self.floats.add(name)
                stored.name = self.writer.free(f"{name}_half")
                self.writer.result.graph.initializer.append(stored)
            else:
                tensor.CopyFrom(stored)
            self.halves[name] = str(stored.name)

    def _is_read_as_half(self, index: int, slot: int) -> bool:
        node = self.view.nodes[index]
        if index not in self.placement.half or slot in operator(node.op_type).float_slots:
            return False
        return node.input[slot] in self.graph.inputs(index)

    def model(self) -> onnx.ModelProto:
        # Example, with Gemm in fp16: x -> Gemm -> y -> Floor becomes
        # x -> Cast -> x_half -> Gemm -> y_half -> Cast -> y -> Floor.
        for index, node in enumerate(self.view.nodes):
            copy = copied(node)
            for slot, name in enumerate(node.input):
                if self._is_read_as_half(index, slot):
                    copy.input[slot] = self._read_as_half(name)
                elif self.graph.accepts_either_type(index) and name not in self.floats:
                    copy.input[slot] = self.halves.get(name, name)
                else:
                    self._read_as_float(name)
            # Subgraphs are not rewritten and read float32.
            for name in captured_names(node):
                self._read_as_float(name)
            if index in self.placement.half:
                self._make_half(copy)
            else:
                self.floats.update(node.output)
            self.writer.append(copy)
        # Outputs of the model keep their type.
        for value in self.view.graph.output:
            self._read_as_float(value.name)
        values = self.writer.result.graph.value_info
        del values[:]
        halves = [half for name, half in self.halves.items() if not self.view.is_constant(name)]
        for name in (*self.existing, *halves):
            if name not in self.view.outputs:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
                values.append(value)
        return self.writer.model()

    def _make_half(self, node: onnx.NodeProto) -> None:
        for slot, name in enumerate(node.output):
            if name in self.graph.floats:
                self.halves[name] = node.output[slot] = self.writer.free(f"{name}_half")
            else:
                self.floats.add(name)
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to":
                item.i = TensorProto.FLOAT16
            elif node.op_type == "ConstantOfShape" and item.name == "value":
                item.t.CopyFrom(_as_half(item.t))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            # The default value is a float32 zero.
            zero = numpy_helper.from_array(np.zeros(1, np.float16))
            node.attribute.append(helper.make_attribute("value", zero))

    def _read_as_half(self, name: str) -> str:
        """Return the name of a tensor's fp16 form, inserting a Cast if needed."""
        if name not in self.halves:
            self.halves[name] = self.writer.free(f"{name}_half")
            self._append_cast(name, self.halves[name], TensorProto.FLOAT16)
        return self.halves[name]

    def _read_as_float(self, name: str) -> None:
        """Insert a Cast if the tensor is also needed in float32."""
        if name in self.halves and name not in self.floats:
            self._append_cast(self.halves[name], name, TensorProto.FLOAT)
            self.floats.add(name)

    def _append_cast(self, source: str, output: str, kind: int) -> None:
        target = {TensorProto.FLOAT16: "half", TensorProto.FLOAT: "float"}[kind]
        self.writer.node("Cast", [source], [output], f"{source}_to_{target}", to=kind)
        self.casts += 1


def _as_half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)
