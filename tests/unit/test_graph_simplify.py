"""Simplification, opsets, external data, figures."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import GraphError
from edgepack.graph.opset import load_onnx, to_opset
from edgepack.graph.run import Runner
from edgepack.graph.signature import signature
from edgepack.graph.simplify import simplify
from edgepack.graph.stats import stats
from edgepack.onnx_tools.limits import default_opset
from edgepack.runtime.tensor import Tensor

WEIGHT = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def convolution(opset: int = 18) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu; doc strings, metadata and a stale shape."""
    vectors = {name: np.linspace(0.5, 1.5, 6, dtype=np.float32) for name in "abmv"}
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "a", "b", "m", "v"], ["n"]),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        "g",
        [value("x", "batch", 3, 8, 8)],
        [value("y", "batch", 6, 8, 8)],
        [
            numpy_helper.from_array(WEIGHT, "conv.weight"),
            *(numpy_helper.from_array(array, name) for name, array in vectors.items()),
            numpy_helper.from_array(np.ones(50, np.float32), "unused"),
        ],
        value_info=[value("c", "batch", 99, 8, 8)],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.doc_string = "/home/someone/train.py"
    model.metadata_props.add(key="author", value="someone")
    body.node[0].doc_string = "/home/someone/net.py"
    model.graph.node[0].metadata_props.add(key="stack", value="/home/someone/net.py")
    return model


def example() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}


def test_norms_fold_and_what_is_stale_or_private_goes():
    original = convolution()
    result = simplify(original, example())
    operators = [node.op_type for node in result.model.graph.node]
    assert operators == ["Conv", "Relu"]
    assert result.changed
    assert result.details["onnxsim"]
    assert b"/home" not in result.model.SerializeToString()
    assert not result.model.graph.value_info
    assert "unused" not in {i.name for i in result.model.graph.initializer}
    assert original.doc_string  # the argument is untouched
    np.testing.assert_allclose(
        Runner(result.model).run(example())[0],
        Runner(simplify_free(original)).run(example())[0],
        atol=1e-5,
    )


def simplify_free(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.value_info[:]
    return copy


def test_a_graph_that_onnxsim_cannot_take_is_kept_with_the_reason(monkeypatch):
    import onnxsim

    def failing(*args, **kwargs):
        raise RuntimeError("Nodes in a graph must be topologically sorted")

    monkeypatch.setattr(onnxsim, "simplify", failing)
    result = simplify(convolution(), example())
    assert "topologically sorted" in result.notes[0]
    assert "1 BatchNormalization could not be folded" in result.notes[1]
    assert not result.details["onnxsim"]


def test_weights_that_are_inputs_become_constants_without_onnxsim_too(monkeypatch):
    import onnxsim

    def failing(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(onnxsim, "simplify", failing)
    model = convolution()
    model.ir_version = 3
    for weight in model.graph.initializer:
        model.graph.input.append(value(weight.name, *weight.dims))
    result = simplify(model, example())
    assert [given.name for given in result.model.graph.input] == ["x"]
    onnx.checker.check_model(result.model, full_check=True)
    ran = [Runner(graph).run(example())[0] for graph in (model, result.model)]
    assert np.array_equal(*ran)


def test_a_result_of_onnxsim_that_computes_something_else_is_refused(monkeypatch):
    import onnxsim

    def wrong(model, **options):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(-WEIGHT, "conv.weight"))
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", wrong)
    result = simplify(convolution(), example())
    assert "it changed what the graph computes" in result.notes[0]
    kept = {i.name: numpy_helper.to_array(i) for i in result.model.graph.initializer}
    np.testing.assert_array_equal(kept["conv.weight"], WEIGHT)


def test_bytes_are_the_same_for_the_same_graph():
    once, twice = (simplify(convolution()).model.SerializeToString() for _ in range(2))
    assert once == twice
    again = simplify(onnx.ModelProto.FromString(once))
    assert again.model.SerializeToString() == once
    assert not again.changed


def test_functions_are_inlined_and_constants_lifted():
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Mul", ["a", "two"], ["b"]),
        ],
        [helper.make_opsetid("", 18)],
    )
    body = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        "g",
        [value("x", "n")],
        [value("y", "n")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(body, functions=[twice], opset_imports=opsets, ir_version=10)
    result = simplify(model, {"x": np.ones(3, np.float32)}).model
    assert [node.op_type for node in result.graph.node] == ["Mul"]
    assert not result.functions


def test_an_old_graph_is_converted_upward_and_computes_the_same():
    old = simplify_free(convolution(13))
    result = to_opset(old, 18)
    assert default_opset(result.model) == 18
    assert result.notes == ("Opset 13 was converted to 18.",)
    np.testing.assert_array_equal(
        Runner(result.model).run(example())[0], Runner(old).run(example())[0]
    )


def test_a_newer_graph_that_engines_run_is_left_alone():
    result = to_opset(simplify_free(convolution(20)), 18)
    assert not result.changed
    assert default_opset(result.model) == 20


def test_external_data_comes_into_the_one_message(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(
        convolution(), path, save_as_external_data=True, location="net.data", size_threshold=0
    )
    loaded = load_onnx(path, 18).model
    (tmp_path / "net.data").unlink()
    assert {i.data_location for i in loaded.graph.initializer} == {TensorProto.DEFAULT}
    assert Runner(simplify(loaded).model).run(example())[0].shape == (2, 6, 8, 8)


def test_sparse_weights_are_written_out(tmp_path):
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    for indices in ([0, 5, 11], [[0, 0], [1, 2], [3, 2]]):
        places = numpy_helper.from_array(np.array(indices, np.int64), "places")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "sparse",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            sparse_initializer=[helper.make_sparse_tensor(values, places, [4, 3])],
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(model, tmp_path / "m.onnx")
        example = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
        simple = simplify(load_onnx(tmp_path / "m.onnx", 21).model, example).model
        expected = Runner(model).run(example)[0]
        np.testing.assert_allclose(Runner(simple).run(example)[0], expected)


def test_inputs_state_the_axes_that_were_asked_for(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "axes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    wanted = (Tensor("x", "float32", (2, "time", 3)),)
    inputs, outputs = signature(load_onnx(tmp_path / "m.onnx", 21, wanted).model)
    assert inputs == wanted
    assert outputs[0].shape[0] == 2


def test_shapes_that_contradict_the_nodes_are_an_error(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "lies",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(GraphError) as caught:
        simplify(to_opset(model, 21).model)
    assert caught.value.code == "graph-invalid"


def test_figures_of_a_convolution():
    figures = stats(simplify(convolution()).model)
    assert figures.operators == {"Conv": 1, "Relu": 1}
    assert figures.parameters == WEIGHT.size + 6


def test_int8_weights_count_and_their_scales_do_not():
    body = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
            helper.make_node("DequantizeLinear", ["bias", "bs", "bz"], ["bd"], axis=0),
            helper.make_node("Gemm", ["x", "d", "bd"], ["y"], transB=1),
        ],
        "g",
        [value("x", "n", 4)],
        [value("y", "n", 3)],
        [
            numpy_helper.from_array(np.ones((3, 4), np.int8), "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "s"),
            numpy_helper.from_array(np.zeros(3, np.int8), "z"),
            numpy_helper.from_array(np.ones(3, np.int32), "bias"),
            numpy_helper.from_array(np.ones(3, np.float32), "bs"),
            numpy_helper.from_array(np.zeros(3, np.int32), "bz"),
        ],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    figures = stats(model)
    assert figures.parameters == 12 + 3


def attention() -> onnx.ModelProto:
    """As PyTorch writes it: three projections with their biases, two heads, no mask."""
    random, width, nodes, weights = np.random.default_rng(0), 16, [], {}

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    def constant(values: np.ndarray) -> str:
        weights[f"w{len(weights)}"] = values
        return f"w{len(weights) - 1}"

    def linear(x: str) -> str:
        weight = random.standard_normal((width, width)).astype(np.float32) / 4
        bias = random.standard_normal(width).astype(np.float32)
        return op("Add", op("MatMul", x, constant(weight)), constant(bias))

    def heads(*perm: int) -> str:
        split = op("Reshape", linear("x"), constant(np.array([0, -1, 2, 8])))
        return op("Transpose", split, perm=perm)

    scores = op("MatMul", heads(0, 2, 1, 3), heads(0, 2, 3, 1))
    scores = op("Div", scores, constant(np.array(8**0.5, np.float32)))
    mixed = op("MatMul", op("Softmax", scores, axis=-1), heads(0, 2, 1, 3))
    joined = op("Transpose", mixed, perm=[0, 2, 1, 3])
    made = linear(op("Reshape", joined, constant(np.array([0, -1, width]))))
    graph = helper.make_graph(
        nodes, "attention", [value("x", "n", 6, width)], [value(made, "n", 6, width)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 19)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_attention_stays_operators_of_onnx():
    """TensorRT knows no com.microsoft.Attention, and its four layers are to be quantized."""
    feed = {"x": np.random.default_rng(1).standard_normal((1, 6, 16)).astype(np.float32)}
    result = simplify(attention(), feed)
    assert result.details["onnxsim"]
    assert {node.domain for node in result.model.graph.node} == {""}
    assert sum(node.op_type == "MatMul" for node in result.model.graph.node) == 6


def test_operators_that_onnx_does_not_have_are_not_put_in(monkeypatch):
    import onnxsim

    def fusing(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        norm = next(n for n in copy.graph.node if n.op_type == "Relu")
        norm.op_type, norm.domain = "Gelu", "com.microsoft"
        copy.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return copy, True

    monkeypatch.setattr(onnxsim, "simplify", fusing)
    result = simplify(convolution())
    assert not result.details["onnxsim"]
    assert "operators that ONNX does not have (com.microsoft.Gelu)" in result.notes[0]


def tiled(nodes: list[onnx.NodeProto], **arrays: np.ndarray) -> onnx.ModelProto:
    """Add a large constant `p`, made by `nodes` of small ones, to the input, and multiply."""
    rng = np.random.default_rng(2)
    arrays["w"] = rng.standard_normal((64, 64)).astype(np.float32)
    body = helper.make_graph(
        [
            *nodes,
            helper.make_node("Add", ["x", "p"], ["a"], "add"),
            helper.make_node("MatMul", ["a", "w"], ["y"], "product"),
        ],
        "g",
        [value("x", "batch", 512, 64)],
        [value("y", "batch", 512, 64)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


HALF = numpy_helper.from_array(np.array([0.5], np.float32))
GROWING = {
    "tile": lambda: tiled(
        [helper.make_node("Tile", ["s", "n"], ["p"])], s=floats(1, 1, 64), n=np.array([1, 512, 1])
    ),
    "expand": lambda: tiled(
        [helper.make_node("Expand", ["s", "n"], ["p"])], s=floats(1, 64), n=np.array([512, 64])
    ),
    "constant of shape": lambda: tiled(
        [helper.make_node("ConstantOfShape", ["n"], ["p"], value=HALF)], n=np.array([512, 64])
    ),
    "broadcast": lambda: tiled(
        [helper.make_node("Mul", ["s", "t"], ["p"])], s=floats(512, 1), t=floats(1, 64)
    ),
    "product": lambda: tiled(
        [helper.make_node("MatMul", ["s", "t"], ["p"])], s=floats(512, 2), t=floats(2, 64)
    ),
}


@pytest.mark.parametrize("kind", GROWING)
def test_no_constant_is_folded_that_makes_the_graph_larger(kind: str) -> None:
    model = GROWING[kind]()
    fed = {"x": floats(1, 512, 64)}
    result = simplify(model, fed)
    assert result.model.ByteSize() < 1.01 * model.ByteSize() + 1024
    assert result.details["bytes_after"] == result.model.ByteSize()
    assert any("stay unfolded" in note for note in result.notes)
    np.testing.assert_array_equal(Runner(result.model).run(fed)[0], Runner(model).run(fed)[0])


def test_weights_that_share_a_size_with_what_made_them_are_folded() -> None:
    model = tiled([helper.make_node("Transpose", ["s"], ["p"], perm=[1, 0])], s=floats(64, 512))
    result = simplify(model, {"x": floats(1, 512, 64)})
    assert [node.op_type for node in result.model.graph.node] == ["Add", "MatMul"]
    assert not any("grew" in note for note in result.notes)


def test_weights_are_folded_even_where_that_takes_more_bytes() -> None:
    """Of a graph that stores them in fp16, every layer would stay float."""
    weights = floats(64, 64).astype(np.float16)
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        ],
        "g",
        [value("x", "batch", 64)],
        [value("y", "batch", 64)],
        [numpy_helper.from_array(weights, "half")],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(body, opset_imports=opset, ir_version=9)
    result = simplify(model, {"x": floats(2, 64)})
    assert [node.op_type for node in result.model.graph.node] == ["MatMul"]
    assert any("had to be folded" in note for note in result.notes)


def shared_convolution(size: int) -> onnx.ModelProto:
    """One convolution's weights on three paths, with a BatchNormalization on each."""
    nodes, arrays = [], {"w": 0.05 * floats(32, 32, 3, 3)}
    for number, path in enumerate("abc"):
        names = [f"{path}_{name}" for name in "sbmv"]
        arrays |= {name: np.abs(floats(32)) + np.float32(0.5 + number) for name in names}
        nodes += [
            helper.make_node("Conv", [f"x{path}", "w"], [f"c{path}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{path}", *names], [f"y{path}"]),
        ]
    body = helper.make_graph(
        nodes,
        "g",
        [value(f"x{path}", 1, 32, size, size) for path in "abc"],
        [value(f"y{path}", 1, 32, size, size) for path in "abc"],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_larger_graph_is_kept_only_where_it_is_faster() -> None:
    model = shared_convolution(96)
    fed = {f"x{path}": floats(1, 32, 96, 96) for path in "abc"}
    for result in (simplify(model, fed), simplify(model)):
        larger = result.model.ByteSize() > 1.5 * model.ByteSize()
        said = [note for note in result.notes if "grew from" in note]
        assert len(said) == 1
        assert ("run faster" in said[0]) == larger
        assert ("no faster" in said[0]) != larger
    assert not larger  # without an example nothing can be measured
