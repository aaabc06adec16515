"""The toolbox for ONNX models: traversal, names, clean-up, writer, sessions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import __file__ as package
from edgepack.onnx_tools.attributes import attribute, attributes
from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.copies import copied, with_outputs
from edgepack.onnx_tools.limits import default_opset
from edgepack.onnx_tools.names import numbered, unused, value_names
from edgepack.onnx_tools.sessions import create_session
from edgepack.onnx_tools.view import GraphView, list_weights
from edgepack.onnx_tools.walk import (
    captured_names,
    count_readers,
    fed_inputs,
    model_nodes,
    nodes_of,
    used_names,
    walk_graphs,
    walk_nodes,
)
from edgepack.onnx_tools.writer import Writer, serialised

FOLDER = Path(package).parent


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


@pytest.fixture
def nested() -> onnx.ModelProto:
    """If(c) { If(c) { x + inner } else { outer } } else { -x }, and a weight that nothing reads."""
    deepest = branch("deepest", [helper.make_node("Add", ["x", "inner"], ["sum"])], "sum")
    direct = branch("direct", [helper.make_node("Identity", ["outer"], ["same"])], "same")
    then = branch(
        "then",
        [helper.make_node("If", ["c"], ["t"], then_branch=deepest, else_branch=direct)],
        "t",
    )
    other = branch("other", [helper.make_node("Neg", ["x"], ["n"])], "n")
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    weights = [
        numpy_helper.from_array(np.full(3, value, np.float32), name)
        for name, value in (("inner", 1), ("outer", 7), ("lonely", 0))
    ]
    graph = helper.make_graph(
        [node],
        "nested",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("inner", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_traversal_reaches_graphs_nested_in_graphs(nested: onnx.ModelProto) -> None:
    names = [graph.name for graph in walk_graphs(nested.graph)]
    assert sorted(names) == ["deepest", "direct", "nested", "other", "then"]
    kinds = sorted(node.op_type for node in walk_nodes(nested.graph))
    assert kinds == ["Add", "Identity", "If", "If", "Neg"]
    assert [node.op_type for node in nodes_of(nested.graph, "Add", "Mul")] == ["Add"]
    assert count_readers(nested.graph)["x"] == 2


def test_functions_are_part_of_a_models_nodes(nested: onnx.ModelProto) -> None:
    inner = copied(nested.graph.node[0])
    nested.functions.append(
        helper.make_function("own", "F", ["x", "c"], ["y"], [inner], [helper.make_opsetid("", 18)])
    )
    assert sorted(node.op_type for node in model_nodes(nested)).count("If") == 4


def returning_outer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a branch that returns an outer tensor without a node, as exporters write."""
    for graph in walk_graphs(model.graph):
        if graph.name == "direct":
            del graph.node[:]
            graph.output[0].name = "outer"
    return model


def test_a_subgraph_captures_what_it_reads_and_what_it_returns(nested: onnx.ModelProto) -> None:
    returning_outer(nested)
    assert {"x", "c", "inner", "outer"} <= set(captured_names(nested.graph.node[0]))
    assert {"x", "inner", "outer"} <= used_names(nested.graph)
    assert GraphView(nested).captured >= {"outer", "inner"}


@pytest.mark.parametrize("rewrite", [True, False])
def test_clean_up_keeps_what_only_a_subgraph_returns(
    nested: onnx.ModelProto, rewrite: bool
) -> None:
    assert remove_unused_initializers(returning_outer(nested).graph, rewrite) == 1
    assert [tensor.name for tensor in nested.graph.initializer] == ["inner", "outer"]
    assert numpy_helper.to_array(nested.graph.initializer[1])[0] == 7


def test_an_input_with_an_initializer_is_not_fed(nested: onnx.ModelProto) -> None:
    assert [value.name for value in fed_inputs(nested.graph)] == ["x", "c"]


def test_names_stay_unique_in_both_forms(nested: onnx.ModelProto) -> None:
    used = value_names(nested.graph)
    assert {"x", "sum", "t", "outer"} <= used
    assert [unused("sum", used) for _ in range(2)] == ["sum_", "sum__"]
    assert [numbered("conv", used) for _ in range(3)] == ["conv", "conv_2", "conv_3"]


def test_the_default_domain_has_two_spellings(nested: onnx.ModelProto) -> None:
    del nested.opset_import[:]
    assert default_opset(nested) == 1
    nested.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    nested.opset_import.append(helper.make_opsetid("ai.onnx", 19))
    assert default_opset(nested) == 19


def test_attributes_have_python_values() -> None:
    node = helper.make_node("Gemm", ["a", "b"], ["y"], alpha=0.5, transB=1)
    assert attributes(node) == {"alpha": 0.5, "transB": 1}
    assert attribute(node, "transA", 0) == 0


def test_the_writer_stores_equal_constants_once_and_declares_domains_that_it_uses() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    weight = numpy_helper.from_array(np.zeros(2, np.float32), "lonely")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    before = serialised(model)
    writer = Writer(model, GraphView(model))
    shift = np.ones(2, np.float32)
    names = [writer.constant("shift", value) for value in (shift, shift, 2 * shift)]
    assert names == ["shift", "shift", "shift_"]
    writer.node("Add", ["x", names[0]], [writer.free("y")], "relu")
    writer.keep(model.graph.node[0])
    result = writer.model()
    assert [node.name for node in result.graph.node] == ["relu_", "relu"]
    assert result.graph.node[0].output[0] == "y_"
    assert [tensor.name for tensor in result.graph.initializer] == ["shift"]
    assert [entry.domain for entry in result.opset_import] == [""]
    assert serialised(model) == before


def test_a_session_reads_a_model_its_bytes_or_its_file(
    nested: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(serialised(nested))
    feed = {"x": np.ones(3, np.float32), "c": np.array(False)}
    results = [create_session(m).run(None, feed)[0] for m in (nested, serialised(nested), path)]
    assert all((y == -1).all() for y in results)
    # Warnings (of the initializer that nothing reads) and errors stay off the terminal.
    with pytest.raises(Exception, match="PROTOBUF"):
        create_session(b"not a model")
    assert capfd.readouterr() == ("", "")


def test_inner_tensors_can_be_outputs() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = create_session(with_outputs(model, ["h"]))
    (h,) = session.run(None, {"x": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(h, [0, 2])
    assert [value.name for value in model.graph.output] == ["y"]


# Each of these is done in one module of the toolbox; `trial` writes its own child's result, and
# the loader ships without the toolbox.
ONE_HOME = {
    r"InferenceSession\(": {"onnx_tools/sessions.py"},
    r"SessionOptions\(": {"onnx_tools/sessions.py"},
    r"HasField\(\"g\"\)": {"onnx_tools/walk.py"},
    r"SerializeToString\(": {"onnx_tools/writer.py", "trial.py"},
    r"domain (not )?in \(\"\", \"ai\.onnx\"\)": set[str](),
    r"\.CopyFrom\(model\)": set[str](),
}


@pytest.mark.parametrize("pattern", ONE_HOME)
def test_every_tool_has_one_home(pattern: str) -> None:
    homes = set()
    for path in FOLDER.rglob("*.py"):
        name = path.relative_to(FOLDER).as_posix()
        text = path.read_text(encoding="utf-8")
        if not name.startswith("runtime/") and re.search(pattern, text):
            homes.add(name)
    assert homes <= ONE_HOME[pattern]


def test_the_weights_of_layers_are_no_other_constants() -> None:
    """A bias, a factor and an initializer that can be fed are not among them."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["y"]),
        helper.make_node("Conv", ["x", "kernel"], ["same"]),
        helper.make_node("Mul", ["y", "factor"], ["z"]),
        helper.make_node("MatMul", ["z", "fed"], ["output"]),
    ]
    shapes = {"kernel": (2, 1, 1, 1), "bias": (2,), "factor": (), "fed": (2, 3)}
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2]),
            helper.make_tensor_value_info("fed", TensorProto.FLOAT, [2, 3]),
        ],
        [onnx.ValueInfoProto(name="output"), onnx.ValueInfoProto(name="same")],
        [
            numpy_helper.from_array(np.ones(shape, np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    assert list_weights(GraphView(helper.make_model(graph))) == ["kernel"]
