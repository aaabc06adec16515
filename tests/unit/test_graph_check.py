"""The check of dynamic axes, on graphs that are wrong in one way each; sizes and outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import GraphError
from edgepack.graph.agreement import disagreement
from edgepack.graph.check import check_dynamic_axes
from edgepack.graph.outputs import state_outputs
from edgepack.graph.run import Runner
from edgepack.graph.signature import rename_outputs, signature
from edgepack.graph.sizes import bind_sizes, candidate_sizes, resize_axes
from support.graph_nets import floats

INPUTS = (floats("x", "batch", 4),)
EXAMPLE = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def graph(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from x to y."""
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def double(arrays):
    return (2 * arrays["x"],)


DOUBLE = graph(helper.make_node("Add", ["x", "x"], ["y"], "twice"))
RESHAPED = graph(
    helper.make_node("Reshape", ["x", "shape"], ["z"], "head.reshape"),
    helper.make_node("Add", ["z", "z"], ["y"], "twice"),
    shape=np.array([2, 4]),
)


def test_a_sound_graph_is_run_at_two_more_sizes():
    notes = check_dynamic_axes(DOUBLE, INPUTS, EXAMPLE, double)
    assert notes == ("Axis batch was run at 3 and 4 beside 2, as the original does.",)


def test_without_the_original_the_note_says_that_nothing_was_compared():
    assert "not compared" in check_dynamic_axes(DOUBLE, INPUTS, EXAMPLE)[0]


def test_a_size_that_the_original_refuses_is_passed_over():
    def even(arrays):
        if len(arrays["x"]) % 2:
            raise ValueError("even batches only")
        return double(arrays)

    notes = check_dynamic_axes(DOUBLE, INPUTS, EXAMPLE, even)
    assert notes == ("Axis batch was run at 4 and 34 beside 2, as the original does.",)


def test_candidates_hold_multiples_of_what_the_network_divides_by():
    assert any(size % 32 == 0 for size in candidate_sizes(64))
    assert 64 not in candidate_sizes(64)
    assert min(candidate_sizes(1)) > 1


def test_resized_samples_differ_and_stay_within_the_example():
    (out,) = resize_axes((floats("x", "n", 3),), {"x": np.array([[1.0, 2, 3]])}, {"n": 3}).values()
    assert len({tuple(row) for row in out}) == 3
    assert set(out.ravel()) == {1.0, 2.0, 3.0}
    assert bind_sizes(INPUTS, EXAMPLE) == {"batch": 2}


def test_outputs_are_stated_as_measured():
    wrong = graph(helper.make_node("Concat", ["x", "x"], ["y"], "c", axis=0))
    wrong.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4)))
    stated = state_outputs(wrong, INPUTS, EXAMPLE)
    assert signature(stated)[1][0].shape == ("y_0", 4)
    assert signature(state_outputs(DOUBLE, INPUTS, EXAMPLE))[1][0].shape == ("batch", 4)


def test_renaming_makes_room_for_names_that_are_taken():
    model = graph(
        helper.make_node("Add", ["x", "w"], ["score"], "a"),
        helper.make_node("Mul", ["score", "w"], ["y"], "b"),
        w=np.ones(4, np.float32),
    )
    for name in ("score", "w"):
        renamed = Runner(rename_outputs(model, (name,)))
        assert renamed.output_names == (name,)
        np.testing.assert_array_equal(renamed.run(EXAMPLE)[0], EXAMPLE["x"] + 1)
    assert [value.name for value in model.graph.output] == ["y"]


@pytest.mark.parametrize(
    ("expected", "found", "word"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "shape"),
        (np.ones(9), np.ones(9) * 1.01, "SNR 40.0 dB"),
        (np.array([1.0, np.nan]), np.array([np.nan, 1.0]), "NaN"),
        (np.array([1, 2]), np.array([1, 3]), "50.0%"),
        (np.ones(2), np.ones(2, int), "int64"),
    ],
)
def test_disagreement_says_what_differs(expected, found, word):
    assert word in disagreement((expected,), (found,), ("y",))


def test_rounding_is_no_disagreement():
    values = np.random.default_rng(0).standard_normal(1000)
    assert disagreement((values,), (values.astype(np.float32),), ("y",)) is None
    assert disagreement((np.zeros(4),), (np.full(4, 1e-8),), ("y",)) is None


def test_the_error_names_the_axis_and_the_node_that_froze_it():
    with pytest.raises(GraphError) as caught:
        check_dynamic_axes(RESHAPED, INPUTS, EXAMPLE, double)
    assert caught.value.code == "axis-frozen"
    assert "batch" in caught.value.what
    assert "head.reshape" in caught.value.what
