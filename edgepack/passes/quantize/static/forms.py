"""Forms of layers whose static int8 kernel is missing or slow.

    LSTM              int8, quantized at run time by a kernel of onnxruntime
    GRU, RNN, Conv3d  int8 in the file, converted to float32 when the model is loaded: a quarter of
                      the bytes at the speed of the float layer
    embedding table   int8 in the file and in memory, with a scale per row; only the rows that an
                      inference reads become float

They share a graph with the static layers. Their weights are rounded to the nearest integer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx

from edgepack.onnx_tools.operators import Trait, operator
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.dynamic_and_weight_only.constants import (
    RECURRENT,
    Choice,
    Constant,
    is_replaceable,
    read_table,
    read_weights,
)
from edgepack.passes.quantize.dynamic_and_weight_only.graph_writers import WRITERS, IntegerWeights
from edgepack.passes.quantize.layers import SLOW_VOLUME, is_volume
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import SYMMETRIC
from edgepack.passes.quantize.weights.int8 import Integers, round_rows

TABLE_REASON = "an embedding table: a scale per row, and only the rows that are read become float"


@dataclass(frozen=True)
class Form:
    """Form of one layer that is not static int8.

    Attributes:
        name: the node's name.
        operator: the node's operator.
        kind: "dynamic", "weights" or "table", a key of `WRITERS`.
        reason: why the layer is not static int8.
        constants: its weights.
        integers: the weights as s8, in the same order.
    """

    name: str
    operator: str
    kind: str
    reason: str
    constants: tuple[Constant, ...]
    integers: tuple[Integers, ...]


def choose_forms(
    view: GraphView, options: QuantizeOptions
) -> tuple[dict[str, Form], dict[str, str]]:
    """Choose the form of every layer whose static int8 kernel is missing or slow.

    Args:
        view: of a prepared graph.
        options: `recurrent`, `conv3d`, and those for rounding weights.

    Returns:
        The forms by node name, and the reasons of layers that cannot have one.
    """
    forms: dict[str, Form] = {}
    reasons: dict[str, str] = {}
    for index, node in enumerate(view.nodes):
        kind = _choose_form(view, index, options)
        if kind is None or node.name in options.exclude:
            continue
        constants = read_weights(view, index)
        if isinstance(constants, str):
            reasons[node.name] = constants
            continue
        # Only integer activations need the pair limit: their products are added in 16 bits.
        rounding = options
        if kind != "dynamic":
            rounding = replace(options, range="full")
        integers = tuple(round_rows(constant.rows, rounding) for constant in constants)
        reason = _reason(node.op_type)
        forms[node.name] = Form(node.name, node.op_type, kind, reason, constants, integers)
    if options.scheme not in SYMMETRIC:
        forms.update(_choose_tables(view, options))
    return forms, reasons


def _choose_tables(view: GraphView, options: QuantizeOptions) -> dict[str, Form]:
    """Return the forms of embedding tables that nothing reads in float, by node name."""
    # A table's rows are not multiplied by integers, so no pair of products can saturate.
    rounding = replace(options, range="full")
    forms: dict[str, Form] = {}
    for index, node in enumerate(view.nodes):
        table = read_table(view, index)
        if table is None or not is_replaceable(view, table, ()):
            continue
        # A Gather that stays float would store its table a second time.
        readers = {view.nodes[reader].name for reader in view.readers[table.name]}
        if readers.isdisjoint(options.exclude):
            integers = (round_rows(table.rows, rounding),)
            forms[node.name] = Form(node.name, "Gather", "table", TABLE_REASON, (table,), integers)
    return forms


def _reason(kind: str) -> str:
    """Return why a layer is not static int8."""
    row = operator(kind)
    if Trait.RECURRENT not in row.traits:
        return SLOW_VOLUME
    # GRU and RNN have no dynamic kernel either.
    if row.no_dynamic:
        return f"recurrent: onnxruntime has no int8 {kind}"
    return row.no_int8


def store_forms(
    model: onnx.ModelProto, forms: Mapping[str, Form], floats: Collection[str]
) -> onnx.ModelProto:
    """Rewrite layers of a static int8 graph to their forms.

    Args:
        model: the static graph, in which these layers are float.
        forms: by node name.
        floats: names of layers that stay float.
    """
    for kind, writer in WRITERS.items():
        selected = [f for f in forms.values() if f.kind == kind and f.name not in floats]
        if not selected:
            continue
        # Indices change with every writer, so the nodes are found by name again.
        view = GraphView(model)
        indices = {node.name: index for index, node in enumerate(view.nodes)}
        constants: dict[int, tuple[Constant, ...]] = {}
        tables: dict[int, Constant] = {}
        integers = {}
        for form in selected:
            index = indices[form.name]
            integers[index] = form.integers
            if form.kind == "table":
                tables[index] = form.constants[0]
            else:
                constants[index] = form.constants
        choice = Choice((), constants, tables, ())
        model = writer(model, view, choice, IntegerWeights(0, integers)).model()
    return model


def _choose_form(view: GraphView, index: int, options: QuantizeOptions) -> str | None:
    """Return the form that the options select for a layer; None if it is static or float."""
    kind = view.nodes[index].op_type
    if kind == "LSTM" and options.recurrent == "dynamic":
        return "dynamic"
    if kind in RECURRENT and options.recurrent != "float":
        return "weights"
    if is_volume(view, index) and options.conv3d == "weights":
        return "weights"
    return None
