"""The operator table: every row holds against onnx's schemas and onnxruntime's kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state

from edgepack import __file__ as package
from edgepack.onnx_tools.fusion import fuse
from edgepack.onnx_tools.operators import OPERATORS, Operator, Trait, having, is_quantized
from edgepack.onnx_tools.operators import operator as row_of
from edgepack.onnx_tools.sessions import create_session

FOLDER = Path(package).parent
RANDOM = np.random.default_rng(3)
# (batch, channels, height, width); all values differ, so that a value names its position.
X = RANDOM.permutation(2 * 8 * 4 * 6).astype(np.float32).reshape(2, 8, 4, 6) / 100 - 1.9
INDICES = np.array([1, 0], np.int64)

# Inputs and attributes of operators that need more than one float tensor. An input of int64 or
# bool is a constant of the node; the first one is fed.
MORE: dict[str, tuple[list[np.ndarray], dict[str, Any]]] = {
    "ArgMax": ([X], {"axis": 1}),
    "ArgMin": ([X], {"axis": 1}),
    "Cast": ([X], {"to": TensorProto.FLOAT16}),
    "Clip": ([X, np.float32(-0.5), np.float32(0.5)], {}),
    "Constant": ([], {"value": numpy_helper.from_array(X)}),
    "ConstantOfShape": ([np.array([2, 3])], {}),
    "Concat": ([X, X + 10], {"axis": 1}),
    "DepthToSpace": ([X], {"blocksize": 2}),
    "Expand": ([X, np.array([3, 2, 8, 4, 6])], {}),
    "Gather": ([X, INDICES], {"axis": 1}),
    "GatherElements": ([X, np.zeros((1, 8, 4, 6), np.int64)], {}),
    "GatherND": ([X, np.array([[1, 2], [0, 3]])], {}),
    "MaxPool": ([X], {"kernel_shape": [2, 2]}),
    "AveragePool": ([X], {"kernel_shape": [2, 2]}),
    "Pad": ([X, np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}),
    "PRelu": ([X, np.full((8, 1, 1), 0.25, np.float32)], {}),
    "Range": ([np.float32(1), np.float32(4), np.float32(0.5)], {}),
    "ReduceMax": ([X, np.array([2, 3])], {}),
    "ReduceMin": ([X, np.array([2, 3])], {}),
    "Reshape": ([X, np.array([2, 8, 24])], {}),
    "ScatterElements": ([X, np.zeros((1, 8, 4, 6), np.int64), X[:1] + 10], {}),
    "ScatterND": ([X, np.array([[1]]), X[:1] + 10], {}),
    "Slice": ([X, np.array([1]), np.array([3]), np.array([2])], {}),
    "SpaceToDepth": ([X], {"blocksize": 2}),
    "Split": ([X], {"axis": 1, "num_outputs": 2}),
    "Squeeze": ([X[:1], np.array([0])], {}),
    "TopK": ([X, np.array([3])], {}),
    "Tile": ([X, np.array([1, 2, 1, 1])], {}),
    "Transpose": ([X], {"perm": [0, 2, 1, 3]}),
    "Unsqueeze": ([X, np.array([1])], {}),
    "Where": ([X > 0, X, X + 10], {}),
}


def inputs_of(row: Operator) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Random inputs and attributes of an operator, from the table above or its schema."""
    if row.name in MORE:
        return MORE[row.name]
    schema = onnx.defs.get_schema(row.name, 21)
    if row.name in ("And", "Or", "Not"):
        first, second = X > 0, np.roll(X, 1) > 0
    else:
        first, second = X, np.roll(X, 1)
    if schema.min_input == 1 and schema.max_input <= 3:
        return [first], {}
    # A positive base and divisor keep Pow and Mod from NaN.
    positive = row.name in ("Pow", "Mod")
    attributes = {"fmod": 1} if row.name == "Mod" else {}
    return [np.abs(first) + 1 if positive else first, np.abs(second) + 1 if positive else second], (
        attributes
    )


def make_model(
    name: str, arrays: Sequence[np.ndarray], attributes: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a graph of this one operator, and the arrays to feed it with."""
    arrays = [np.asarray(array) for array in arrays]
    names = [f"x{slot}" for slot in range(len(arrays))]
    outputs = ["y", "z"] if name in ("Split", "TopK") else ["y"]
    node = helper.make_node(name, names, outputs, **attributes)
    constants = [
        numpy_helper.from_array(array, n)
        for n, array in zip(names, arrays, strict=True)
        if array.dtype == np.int64
    ]
    fed = {n: array for n, array in zip(names, arrays, strict=True) if array.dtype != np.int64}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in fed.items()
        ],
        [onnx.ValueInfoProto(name=output) for output in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, fed


def compute(name: str, arrays: Sequence[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    """The first output of a graph of this one operator."""
    model, feed = make_model(name, arrays, attributes)
    return np.asarray(create_session(model).run(None, feed)[0])


def rows_with(trait: Trait) -> list[Any]:
    return [pytest.param(OPERATORS[name], id=name) for name in sorted(having(trait))]


def test_every_row_names_an_operator_and_inputs_that_it_has() -> None:
    foreign = {
        (schema.domain, schema.name): schema
        for schema in onnxruntime_pybind11_state.get_all_operator_schema()
    }
    for row in OPERATORS.values():
        schema = foreign.get((row.domain, row.name)) if row.domain else None
        if schema is None:
            schema = onnx.defs.get_schema(row.name, row.domain)
        slots = [*row.weights, *row.trained, *row.float_slots]
        if row.divisor is not None:
            slots.append(row.divisor)
        assert max(slots, default=0) < schema.max_input or not slots, row.name
        assert (row.activations or 0) <= schema.max_input, row.name


def test_traits_of_a_row_do_not_contradict_each_other() -> None:
    for row in OPERATORS.values():
        traits = row.traits
        has = traits.__contains__
        assert not has(Trait.MOVES) or has(Trait.EXACT), row.name
        assert not has(Trait.RECURRENT) or has(Trait.LAYER), row.name
        assert not has(Trait.AVERAGES) or (has(Trait.POOLS) and not has(Trait.MOVES)), row.name
        assert not has(Trait.LAYER) or (row.weights and row.products), row.name
        assert (not has(Trait.ADDS) and not has(Trait.SCALES)) or has(Trait.ELEMENTWISE), row.name
        assert not (has(Trait.EXACT) and (row.bound or row.products)), row.name
        assert not (has(Trait.HALF) and row.no_half), row.name
        assert row.bound is None or has(Trait.HALF), row.name
        assert not has(Trait.TENSORRT_MOVES) or has(Trait.MOVES) or has(Trait.CLAMPS), row.name
        assert row.int8 != "moves" or has(Trait.MOVES), row.name
        assert row.int8 != "layer" or has(Trait.LAYER), row.name
        assert row.int8 is None or not row.no_int8, row.name
        assert not has(Trait.LAYER) or bool(row.int8) != bool(row.no_int8), row.name
        assert not row.no_tensorrt or row.no_int8, row.name
        assert is_quantized(row.name) == has(Trait.QUANTIZED), row.name


def test_an_operator_without_a_row_has_no_traits() -> None:
    assert row_of("NoSuchOperator") == Operator("NoSuchOperator")


@pytest.mark.parametrize("row", rows_with(Trait.MOVES))
def test_moves_return_values_of_their_inputs_or_of_a_pad(row: Operator) -> None:
    arrays, attributes = inputs_of(row)
    values = np.concatenate([np.ravel(a) for a in arrays if a.dtype == np.float32])
    output = compute(row.name, arrays, attributes)
    assert output.size
    assert np.isin(output, [*values, 0.0]).all()


@pytest.mark.parametrize("row", rows_with(Trait.ELEMENTWISE))
def test_elementwise_operators_commute_with_any_order_of_the_elements(row: Operator) -> None:
    arrays, attributes = inputs_of(row)
    order = RANDOM.permutation(X.size)

    def permuted(array: np.ndarray) -> np.ndarray:
        full = np.broadcast_to(array, X.shape) if array.ndim else array
        return full.ravel()[order].reshape(X.shape) if array.ndim else array

    full = [np.broadcast_to(array, X.shape) if array.ndim else array for array in arrays]
    before = compute(row.name, full, attributes)
    after = compute(row.name, [permuted(array) for array in full], attributes)
    # A vector unit may compute the last elements of an array by another polynomial.
    np.testing.assert_allclose(
        after.astype(np.float64), permuted(before).astype(np.float64), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("row", rows_with(Trait.HOMOGENEOUS))
def test_homogeneous_operators_pass_a_positive_factor_through(row: Operator) -> None:
    (first, *rest), attributes = inputs_of(row)
    once, scaled = (compute(row.name, [f * first, *rest], attributes) for f in (1.0, 4.0))
    np.testing.assert_array_equal(scaled, 4 * once)


@pytest.mark.parametrize("row", [*rows_with(Trait.ADDS), *rows_with(Trait.SCALES)])
def test_sums_and_products_scale_as_such(row: Operator) -> None:
    first, second = X, np.roll(X, 1) + 5
    once = compute(row.name, [first, second], {})
    if Trait.ADDS in row.traits:
        scaled = compute(row.name, [4 * first, 4 * second], {})
    else:
        scaled = compute(row.name, [4 * first, second], {})
    np.testing.assert_array_equal(scaled, 4 * once)


@pytest.mark.parametrize("row", rows_with(Trait.POOLS))
def test_pools_treat_each_channel_by_itself(row: Operator) -> None:
    (x, *rest), attributes = inputs_of(row)
    order = RANDOM.permutation(8)
    before = compute(row.name, [x, *rest], attributes)
    np.testing.assert_allclose(
        compute(row.name, [x[:, order], *rest], attributes), before[:, order], rtol=1e-6
    )


@pytest.mark.parametrize("row", rows_with(Trait.CLAMPS))
def test_clamps_return_their_input_or_one_of_at_most_two_bounds(row: Operator) -> None:
    (x, *bounds), attributes = inputs_of(row)
    # Values far beyond any bound, none of which is a bound itself.
    x = 1000 * x + np.float32(0.125)
    output = compute(row.name, [x, *bounds], attributes)
    limits = np.setdiff1d(output, x)
    assert 1 <= limits.size <= 2
    assert np.isin(output[output != x], limits).all()
    # The input's order is that of the output: below one bound, or above the other, it is constant.
    assert (np.diff(output.ravel()[np.argsort(x, axis=None)]) >= 0).all()


@pytest.mark.parametrize("row", rows_with(Trait.EXACT))
def test_exact_operators_have_the_same_bits_in_two_implementations(row: Operator) -> None:
    """onnxruntime and onnx's reference implementation in numpy share no code."""
    model, feed = make_model(row.name, *inputs_of(row))
    (output, *_) = create_session(model).run(None, feed)
    (reference, *_) = ReferenceEvaluator(model).run(None, feed)
    assert output.dtype == reference.dtype
    np.testing.assert_array_equal(output, reference)


def quantized_model(row: Operator) -> onnx.ModelProto:
    """Q, DQ, the operator, Q, DQ, with weights behind a DQ for a layer."""
    arrays, attributes = inputs_of(row)
    constants = {"scale": np.float32(0.05), "zero": np.uint8(128), "weight_zero": np.int8(0)}
    nodes: list[onnx.NodeProto] = []

    def pair(name: str, number: int) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"q{number}"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"q{number}", "scale", "zero"], [f"d{number}"])
        )
        return f"d{number}"

    source = X.reshape(16, 24) if row.name in ("Gemm", "MatMul") else arrays[0]
    count = len(arrays) if row.activations is None else min(row.activations, len(arrays))
    inputs = [pair(f"x{slot}", slot) for slot in range(count)]
    if row.int8 == "layer":
        shape = (4, 8, 3, 3) if row.name == "Conv" else (24, 5)
        constants["weight"] = RANDOM.integers(-63, 63, shape).astype(np.int8)
        nodes.append(
            helper.make_node("DequantizeLinear", ["weight", "scale", "weight_zero"], ["w"])
        )
        inputs.append("w")
    else:
        for slot, array in enumerate(arrays[count:], count):
            constants[f"x{slot}"] = np.asarray(array)
            inputs.append(f"x{slot}")
    # Relu has no integer kernel of its own; the pass writes it as a LeakyRelu of slope 0.
    kind, settings = ("LeakyRelu", {"alpha": 0.0}) if row.name == "Relu" else (row.name, attributes)
    parts = ["y", "z"] if row.name == "Split" else ["y"]
    nodes.append(helper.make_node(kind, inputs, parts, **settings))
    # onnxruntime fuses a Split only if all its outputs are quantized.
    for number, part in enumerate(parts[1:], 10):
        pair(part, number)
    output = pair("y", 9)
    graph = helper.make_graph(
        nodes,
        "quantized",
        [
            helper.make_tensor_value_info(f"x{slot}", TensorProto.FLOAT, np.shape(array))
            for slot, array in enumerate([source, *arrays[1:]][:count])
        ],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in OPERATORS.values() if row.int8]
)
def test_onnxruntime_has_the_integer_kernels(row: Operator) -> None:
    model = quantized_model(row)
    kinds = [node.op_type for node in fuse(model).graph.node]
    # All DQ nodes but those of the results are fused with the operator, which reads the integers.
    assert kinds.count("DequantizeLinear") == (2 if row.name == "Split" else 1), kinds
    if row.int8 == "moves":
        assert row.name in kinds
    else:
        assert any(is_quantized(kind) and kind[0] == "Q" and kind[1] != "u" for kind in kinds), (
            kinds
        )


# Collections of operator types that say nothing about operators in general.
ALLOWED = {
    "onnx_tools/operators.py": "the table",
    "normalize/fused.py": "attributes of the activations that a FusedConv can hold",
    "passes/quantize/calibration/activations.py": "nodes that it appends",
    "passes/quantize/equalize/magnitudes.py": "nodes that it appends",
    "source/program.py": "functions of sympy",
}
TYPES = {schema.name for schema in onnx.defs.get_all_schemas_with_history()} | set(OPERATORS)


def operator_collections(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Yield line and operator types of every literal set, list, tuple, dict or split string."""
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Set | ast.List | ast.Tuple | ast.Dict):
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            pending = [item for item in items if item is not None]
            # (*("Add", "Sub"), "Mul") holds three.
            while pending:
                item = pending.pop()
                if isinstance(item, ast.Starred) and isinstance(item.value, ast.List | ast.Tuple):
                    pending += item.value.elts
                elif isinstance(item, ast.Constant) and isinstance(item.value, str):
                    words.append(item.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if not TYPES.issuperset(words):
                continue
        types = TYPES.intersection(words)
        if len(types) >= 3:
            yield node.lineno, sorted(types)


def test_no_other_module_lists_operators() -> None:
    faults = []
    for path in sorted(FOLDER.rglob("*.py")):
        name = path.relative_to(FOLDER).as_posix()
        if name in ALLOWED:
            continue
        for line, types in operator_collections(ast.parse(path.read_text(encoding="utf-8"))):
            faults.append(f"{name}:{line}: {', '.join(types)}")
    assert not faults, "give the operators a trait in onnx_tools/operators.py"


def test_a_starred_or_split_list_of_operators_is_still_a_list() -> None:
    tree = ast.parse('a = (*("Add", "Sub"), "Mul")\nb = "Conv Gemm MatMul".split()\nc = ["Relu"]')
    assert [line for line, _ in operator_collections(tree)] == [1, 2]
