"""Every error of edgepack.graph, by a small case of its own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import GraphError
from edgepack.graph.check import check_dynamic_axes
from edgepack.graph.export import export_module, export_program
from edgepack.graph.opset import load_onnx, to_opset
from edgepack.graph.run import Runner
from edgepack.graph.signature import rename_outputs, signature
from edgepack.graph.simplify import simplify
from support.graph_nets import (
    Branching,
    Factorized,
    FixedBatch,
    Unrolled,
    floats,
    normal,
    runner,
)

INPUTS = (floats("x", "batch", 4),)
EXAMPLE = {"x": normal(2, 4)}


def identity(op: str = "Relu", opset: int = 18, shape=("batch", 4)) -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], "act")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def relu(arrays):
    return (np.maximum(arrays["x"], 0),)


def fails(code: str, call, *words: str) -> GraphError:
    with pytest.raises(GraphError) as caught:
        call()
    error = caught.value
    assert error.code == code, str(error)
    for word in words:
        assert word in str(error)
    assert error.why
    assert error.hint
    assert len(str(error).splitlines()) < 12
    return error


def export(module, inputs=INPUTS, example=EXAMPLE, **options):
    return lambda: export_module(module.eval(), inputs, example, 18, **options)


def test_a_branch_on_values_is_shown_by_its_line():
    fails("export-failed", export(Branching()), "graph_nets.py", "if x.sum() > 0", "torch.where")


def test_an_operator_without_onnx_is_shown_by_name_and_line():
    fails("export-failed", export(Factorized()), "linalg_svd", "torch.linalg.svd(x)[1]")


def test_a_model_that_refuses_its_inputs_is_told_from_a_failing_export():
    fails("export-failed", export(torch.nn.Linear(3, 4)), "the model itself", "2x4 and 3x4")


def test_torchscript_that_returns_a_dict(capfd):
    class Keyed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x * 2}

    fails("export-failed", export(torch.jit.script(Keyed())), "DictConstruct")


def test_a_reshape_to_a_number_freezes_the_batch():
    fails("axis-frozen", export(FixedBatch()), "batch", "x.reshape(2, 4)")


def test_an_unrolled_loop_freezes_the_time_axis():
    inputs = (floats("x", "batch", "time", 4),)
    fails(
        "axis-frozen",
        export(Unrolled(), inputs, {"x": normal(2, 5, 4)}),
        "the dynamic axis time",
        "for step in range",
    )


def test_a_program_with_a_fixed_axis_that_shall_be_dynamic():
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 4),))
    fails("axis-frozen", lambda: export_program(program, 18, INPUTS), "only 2")


def test_a_program_with_more_inputs_than_were_named():
    program = torch.export.export(torch.nn.Bilinear(2, 2, 1), (torch.zeros(1, 2),) * 2)
    fails("input-names", lambda: export_program(program, 18, INPUTS), "got 1")


def test_a_graph_that_states_a_number_for_a_dynamic_axis():
    fails("axis-frozen", lambda: check_dynamic_axes(identity(shape=(2, 4)), INPUTS, EXAMPLE, relu))


def test_a_graph_whose_results_are_wrong_at_another_size():
    def by_size(arrays):
        return (np.maximum(arrays["x"], 0) * (len(arrays["x"]) / 2),)

    fails(
        "axis-wrong",
        lambda: check_dynamic_axes(identity(), INPUTS, EXAMPLE, by_size),
        "batch",
        "at batch = 3",
    )


def test_a_model_that_takes_one_size_only_though_called_dynamic():
    net = FixedBatch()
    fails(
        "axis-fixed",
        lambda: check_dynamic_axes(identity("Abs"), INPUTS, EXAMPLE, only_two(net)),
        "accepts only 2",
    )


def only_two(net):
    def run(arrays):
        runner(net, INPUTS)(arrays)  # fails unless two
        return (np.abs(arrays["x"]),)

    return run


def test_a_graph_that_differs_on_the_example_itself():
    fails("export-wrong", lambda: check_dynamic_axes(identity("Abs"), INPUTS, EXAMPLE, relu), "SNR")


def test_a_graph_that_was_quantized_before():
    graph = identity()
    scale = numpy_helper.from_array(np.float32(1), "scale")
    graph.graph.initializer.extend([scale, numpy_helper.from_array(np.int8([1]), "weight")])
    graph.graph.node.append(helper.make_node("DequantizeLinear", ["weight", "scale"], ["unused"]))

    def by_engine(arrays):
        return (np.round(relu(arrays)[0], 1),)

    def check():
        check_dynamic_axes(graph, INPUTS, EXAMPLE, by_engine)

    fails("export-wrong", check, "already quantized")


def test_inputs_called_otherwise_than_in_the_graph():
    other = (floats("image", "batch", 4),)
    feed = {"image": normal(2, 4)}
    fails("input-names", lambda: check_dynamic_axes(identity(), other, feed), "image", "x:float32")


@pytest.mark.parametrize(
    ("example", "word"),
    [
        ({}, "has no such array"),
        ({"x": normal(4)}, "[4]"),
        ({"x": normal(2, 5)}, "5 long, expected 4"),
    ],
)
def test_an_example_that_does_not_fit(example, word):
    fails("example-misfit", export(Branching(), INPUTS, example), word)


@pytest.mark.parametrize("names", [("a", "b"), ("x",), ("",)])
def test_output_names_that_do_not_fit(names):
    fails("output-names", lambda: rename_outputs(identity(), names))


def test_a_network_beyond_two_gigabytes():
    net = torch.nn.Linear(30_000, 20_000, device="meta")
    fails("graph-too-large", export(net), "2.40 GB")


def test_external_data_beyond_two_gigabytes(tmp_path):
    model = identity()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[750_000_000])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="length", value="3000000000")
    model.graph.initializer.append(tensor)
    path = tmp_path / "big.onnx"
    path.write_bytes(model.SerializeToString())
    fails("graph-too-large", lambda: load_onnx(path, 18), "3.00 GB")


@pytest.mark.parametrize("data", [b"", b"no protobuf at all \xff\xff\xff"])
def test_a_file_that_is_no_onnx(tmp_path, data):
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    fails("onnx-unreadable", lambda: load_onnx(path, 18), "net.onnx")


def test_external_data_that_is_not_there(tmp_path):
    model = identity()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(9, np.float32), "w"))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").unlink()
    fails("external-data", lambda: load_onnx(path, 18), "net.data")


def test_an_opset_that_cannot_be_converted():
    body = identity(opset=9)
    body.graph.node[0].op_type = "Upsample"
    body.graph.node[0].input.append("scales")
    body.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "scales"))
    body.graph.node[0].domain = "vendor"
    body.opset_import.append(helper.make_opsetid("vendor", 1))
    body.graph.node.append(helper.make_node("Scan", ["y"], ["z"], "broken"))
    fails("opset-conversion", lambda: to_opset(body, 18), "opset 9")


def test_a_graph_that_breaks_the_rules():
    model = identity()
    model.graph.node.append(helper.make_node("Relu", ["nowhere"], ["z"]))
    fails("graph-invalid", lambda: simplify(model), "nowhere")


def test_a_graph_that_the_engine_does_not_know():
    model = identity()
    model.graph.node[0].domain = "vendor"
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    fails("graph-rejected", lambda: Runner(model), "vendor")


def test_feeding_a_graph_wrongly():
    loaded = Runner(identity())
    fails("input-missing", lambda: loaded.run({}), "x")
    fails("run-failed", lambda: loaded.run({"x": np.zeros((2, 5), np.float32)}), "[2, 5]")


def test_an_input_that_is_no_tensor():
    model = identity()
    model.graph.input[0].CopyFrom(
        helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    )
    fails("tensor-type", lambda: signature(model), "sequence_type")


def test_two_sizes_under_one_name():
    inputs = (floats("a", "n"), floats("b", "n"))
    fails("example-misfit", export(Branching(), inputs, {"a": normal(2), "b": normal(3)}), "3 long")
