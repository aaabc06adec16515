"""Export: what comes out computes the same, is named well, and says what went wrong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from edgepack.errors import GraphError
from edgepack.graph.agreement import floor_db
from edgepack.graph.check import check_dynamic_axes
from edgepack.graph.export import export_module, export_program, export_traced
from edgepack.graph.reads import input_read
from edgepack.graph.run import Runner
from edgepack.graph.signature import signature
from edgepack.graph.simplify import simplify
from edgepack.runtime.tensor import Tensor
from support.graph_nets import (
    Branch,
    Guarded,
    Keyed,
    Masked,
    Mixed,
    Ocr,
    Pictures,
    Recurrent,
    Repeated,
    Sinc,
    Steps,
    Video,
    floats,
    normal,
    runner,
)

PICTURE = (floats("image", "batch", 3, 16, 16),)


@pytest.fixture(scope="module")
def pictures() -> tuple[Pictures, onnx.ModelProto]:
    torch.manual_seed(0)
    net = Pictures().eval()
    return net, export_module(net, PICTURE, {"image": normal(1, 3, 16, 16)}, 18).model


def test_export_computes_what_the_module_computes(pictures):
    net, graph = pictures
    example = {"image": normal(3, 3, 16, 16)}
    np.testing.assert_allclose(
        Runner(graph).run(example)[0], runner(net, PICTURE)(example)[0], atol=1e-5
    )
    assert [str(t) for t in signature(graph)[0]] == ["image:float32:batch,3,16,16"]
    assert [str(t) for t in signature(graph)[1]] == ["output:float32:batch,5"]


def test_nodes_are_called_after_modules_and_norms_are_folded(pictures):
    result = simplify(pictures[1], {"image": normal(1, 3, 16, 16)})
    nodes = {node.name: node.op_type for node in result.model.graph.node}
    assert {"stem", "blocks.0.conv", "blocks.1.conv", "head"} <= set(nodes)
    assert nodes["blocks.0/Clip"] == "Clip"
    assert "BatchNormalization" not in nodes.values()
    assert result.details["batch_norms_left"] == 0
    assert len(nodes) == len(result.model.graph.node)


def test_nothing_of_the_build_machine_is_in_the_graph(pictures):
    graph = pictures[1]
    data = graph.SerializeToString()
    for trace in (b"site-packages", b".py", b"pkg.torch", b"stack_trace"):
        assert trace not in data
    assert not graph.metadata_props
    assert not graph.graph.value_info


def test_export_is_the_same_every_time(pictures):
    net, graph = pictures
    again = export_module(net, PICTURE, {"image": normal(1, 3, 16, 16)}, 18).model
    assert again.SerializeToString() == graph.SerializeToString()
    first, second = simplify(graph).model, simplify(again).model
    assert first.SerializeToString() == second.SerializeToString()


def test_exporters_print_nothing(pictures, capfd):
    export_module(pictures[0], PICTURE, {"image": normal(1, 3, 16, 16)}, 18)
    assert capfd.readouterr() == ("", "")


def test_keys_of_a_dict_name_the_outputs():
    graph = export_module(Keyed().eval(), (floats("x", "n", 4),), {"x": normal(1, 4)}, 18).model
    assert [t.name for t in signature(graph)[1]] == ["logits", "probabilities"]


def test_an_output_given_twice_and_an_input_given_back_stay_three_outputs():
    inputs, example = (floats("x", "n", 4),), {"x": normal(2, 4)}
    graph = export_module(Repeated().eval(), inputs, example, 18, ("a", "b", "c")).model
    simple = Runner(simplify(graph, example).model)
    assert simple.output_names == ("a", "b", "c")
    doubled, again, given = simple.run(example)
    np.testing.assert_array_equal(doubled, 2 * example["x"])
    np.testing.assert_array_equal(doubled, again)
    np.testing.assert_array_equal(given, example["x"])


def test_integers_booleans_and_python_floats():
    inputs = (floats("x", "N", 4), Tensor("shift", "int32", ("N",)), Tensor("keep", "bool", ("N",)))
    example = {
        "x": normal(2, 4),
        "shift": np.array([3, 5], np.int32),
        "keep": np.array([True, False]),
    }
    net = Mixed().eval()
    graph = simplify(export_module(net, inputs, example, 18).model, example).model
    notes = check_dynamic_axes(graph, inputs, example, runner(net, inputs))
    assert [t.dtype for t in signature(graph)[0]] == ["float32", "int32", "bool"]
    assert notes == ("Axis N was run at 3 and 4 beside 2, as the original does.",)


def test_two_dynamic_axes_of_a_video_network():
    inputs, example = (floats("clip", "batch", 1, "time", 6, 6),), {"clip": normal(1, 1, 5, 6, 6)}
    net = Video().eval()
    graph = export_module(net, inputs, example, 18).model
    check_dynamic_axes(graph, inputs, example, runner(net, inputs))
    assert signature(graph)[1][0].shape == ("batch", 3, "time")


def test_outputs_state_the_axes_that_they_really_have():
    inputs, example = (floats("x", "batch", "time", 4),), {"x": normal(1, 5, 4)}
    net = Steps().eval()
    graph = export_module(net, inputs, example, 18).model
    assert signature(graph)[1][0].shape == ("batch", "time", 8)
    check_dynamic_axes(graph, inputs, example, runner(net, inputs))


def test_a_recurrent_layer_that_torch_export_unrolls_is_traced_whole():
    inputs, example = (floats("x", "batch", "time", 4),), {"x": normal(1, 5, 4)}
    net = Recurrent().eval()
    result = export_module(net, inputs, example, 18)
    assert "froze the axis time" in result.notes[0]
    assert "graph_nets.py" in result.notes[0]
    graph = simplify(result.model, example).model
    assert Counter(node.op_type for node in graph.graph.node)["RNN"] == 1
    assert len(check_dynamic_axes(graph, inputs, example, runner(net, inputs))) == 2


FAILS_IN_TORCH_EXPORT = {
    "Ocr": (Ocr, (floats("x", "batch", 1, 8, "width"),), normal(1, 1, 8, 32)),
    "Sinc": (Sinc, (floats("x", "batch", 1, "time"),), normal(1, 1, 16)),
    "Masked": (Masked, (floats("x", "batch", 5, 8),), normal(2, 5, 8)),
}


@pytest.mark.parametrize("name", FAILS_IN_TORCH_EXPORT)
def test_what_torch_export_fails_on_is_traced_and_compared_at_other_sizes(name):
    kind, inputs, x = FAILS_IN_TORCH_EXPORT[name]
    torch.manual_seed(0)
    net = kind().eval()
    result = export_module(net, inputs, {"x": x}, 18)
    assert result.notes[0].startswith("torch.export failed (")
    assert "exported by tracing" in result.notes[0]
    axes = [dim for dim in inputs[0].shape if isinstance(dim, str)]
    notes = check_dynamic_axes(result.model, inputs, {"x": x}, runner(net, inputs))
    assert len(notes) == len(axes)


def test_the_fast_path_of_attention_is_off_in_an_export_and_on_again_behind_it():
    inputs, net = (floats("x", "batch", 5, 8),), Masked().eval()
    export_module(net, inputs, {"x": normal(2, 5, 8)}, 18)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_path_that_depends_on_values_is_never_traced():
    inputs, net = (floats("x", 1, 4),), Branch().eval()
    with pytest.raises(GraphError) as caught:
        export_module(net, inputs, {"x": normal(1, 4)}, 18)
    assert caught.value.code == "export-failed"
    assert "depends on a tensor's values" in caught.value.why
    assert export_traced(net, inputs, {"x": normal(1, 4)}, 18) is None


def test_reading_shapes_and_weights_does_not_keep_a_module_from_being_traced():
    x = torch.from_numpy(normal(1, 4))
    assert input_read(Guarded().eval(), (x,)) is None
    assert "x.mean() > 0" in str(input_read(Branch().eval(), (x,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_modules_of_other_precisions_are_exported_in_float32(dtype):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    net = net.eval().to(dtype)
    name = str(dtype).removeprefix("torch.")
    inputs = (Tensor("x", name, ("batch", 4)),)
    example = {"x": normal(1, 4).astype(name)}
    result = export_module(net, inputs, example, 18)
    types = {t.data_type for t in result.model.graph.initializer if t.dims}
    assert types == {onnx.TensorProto.FLOAT}
    floor = floor_db(result.details["promoted"])
    check_dynamic_axes(result.model, inputs, example, runner(net, inputs), floor)


def test_torchscript_is_exported():
    inputs, example = (floats("x", "batch", "time", 4),), {"x": normal(1, 5, 4)}
    script = torch.jit.script(Recurrent().eval())
    graph = simplify(export_module(script, inputs, example, 18).model, example).model
    assert signature(graph)[1][0].shape == ("batch", 2)
    assert len(check_dynamic_axes(graph, inputs, example, runner(script, inputs))) == 2


def test_an_exported_program_keeps_its_dynamic_axes():
    net = Pictures().eval()
    program = torch.export.export(
        net,
        (torch.zeros(2, 3, 16, 16),),
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    graph = export_program(program, 18, PICTURE, ("logits",)).model
    assert [str(t) for pair in signature(graph) for t in pair] == [
        "image:float32:batch,3,16,16",
        "logits:float32:batch,5",
    ]
    example = {"image": normal(3, 3, 16, 16)}
    check_dynamic_axes(graph, PICTURE, example, runner(net, PICTURE))


def test_a_small_distilbert_with_two_inputs_and_two_axes():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(
        dim=16, hidden_dim=32, n_layers=1, n_heads=2, vocab_size=50, max_position_embeddings=32
    )
    net = DistilBertForSequenceClassification(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    inputs = tuple(
        Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")
    )
    example = {
        "input_ids": np.array([[5, 9, 11, 2, 7]]),
        "attention_mask": np.array([[1, 1, 1, 1, 0]]),
    }
    result = simplify(export_module(net, inputs, example, 18).model, example)
    assert result.details["nodes_after"] < result.details["nodes_before"]
    assert signature(result.model)[1][0].shape == ("batch", 2)
    assert len(check_dynamic_axes(result.model, inputs, example, runner(net, inputs))) == 2
    names = {node.name for node in result.model.graph.node}
    assert "distilbert.transformer.layer.0.attention.q_lin" in names
