"""Bundles whose model computes something else than what their build measured.

Two columns for every fault: the honest answers stay in the bundle, or those of the build host are
made anew with the faulty model, as whoever replaces it would. Neither may pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgepack import bundle
from edgepack.bundle import OtherSize
from edgepack.graph import Runner
from edgepack.runtime.parity.sizes import feed_at_size, stack_limit
from edgepack.runtime.tensor import Tensor
from support.bundle_cases import run_bundle
from support.linear import linear_contents, linear_onnx, measured

Fault = Callable[[onnx.ModelProto], None]


def weights_by(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        (weights,) = model.graph.initializer
        changed = np.ascontiguousarray(change(numpy_helper.to_array(weights).copy()))
        weights.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), "w"))

    return fault


def low_bit(weights: np.ndarray) -> np.ndarray:
    weights.view(np.uint32)[2, 1] ^= 1 << 16
    return weights


def tail(*nodes: onnx.NodeProto, **constants: np.ndarray) -> Fault:
    """Nodes after the output, which they read as `pre`."""

    def fault(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = "pre"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())

    return fault


node = helper.make_node
FAULTS: dict[str, Fault] = {
    "a bit of a weight": weights_by(low_bit),
    "a layer of zeros": weights_by(lambda w: 0 * w),
    "twice the scale": weights_by(lambda w: 2 * w),
    "half the confidence": weights_by(lambda w: w / 2),
    "the other sign": weights_by(lambda w: -w),
    "outputs in another order": weights_by(lambda w: np.roll(w, 1, axis=1)),
    "inputs in another order": weights_by(lambda w: w[::-1]),
    "one class not a number": tail(
        node("Add", ["pre", "c"], ["y"]), c=np.array([0, np.nan, 0], np.float32)
    ),
    "one class minus infinity": tail(
        node("Add", ["pre", "c"], ["y"]), c=np.array([0, 0, -np.inf], np.float32)
    ),
    "the first row for all": tail(
        node("Slice", ["pre", "zero", "one"], ["first"]),
        node("Shape", ["pre"], ["shape"]),
        node("Expand", ["first", "shape"], ["y"]),
        zero=np.array([0]), one=np.array([1]),
    ),
}  # fmt: skip


def answers(model: onnx.ModelProto, contents: bundle.Contents) -> bundle.Contents:
    """Contents with the answers of a model, as the build host's."""
    runner = Runner(model)
    rows = [runner.run({"x": feed})[0] for feed in contents.reference[0]]
    sizes = [
        replace(size, built=[runner.run({"x": batch_of_two(contents)})[0]])
        for size in contents.sizes
    ]
    return replace(contents, built=[np.stack(rows)], sizes=sizes)


def batch_of_two(contents: bundle.Contents) -> np.ndarray:
    return np.concatenate(list(contents.reference[0][:2]))


@pytest.fixture(scope="module")
def honest() -> bundle.Contents:
    """A bundle that is no copy of its original: its weights are rounded to 7 bits."""
    contents = linear_contents()
    _, exact = linear_onnx()
    size = OtherSize("batch", 2, [batch_of_two(contents) @ exact])
    rounded = np.round(exact * 32) / 32
    model = onnx.load_model_from_string(contents.model)
    weights_by(lambda w: rounded)(model)
    contents = replace(
        contents,
        model=model.SerializeToString(),
        sizes=[size],
        gates={"quality": {"snr_db": 10, "agreement": 0.9}, "fidelity": {"bit_exact": True}},
    )
    return measured(answers(model, contents))


def passes(contents: bundle.Contents, path: Path) -> bool:
    """Return the verdict; a bundle that is refused does not pass."""
    bundle.write(path, contents)
    done = run_bundle(path, "verify", "--json")
    document = json.loads(done.stdout)
    if "error" in document:
        assert (done.returncode, document["error"]["code"]) == (2, "bundle-answers")
        return False
    assert done.returncode == (0 if document["passed"] else 1)
    return bool(document["passed"])


def test_the_honest_bundle_passes(honest: bundle.Contents, tmp_path: Path) -> None:
    assert passes(honest, tmp_path / "honest.edgepack")


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("regenerated", [False, True], ids=["honest answers", "made anew"])
def test_a_faulty_model_passes_with_neither_answers(
    honest: bundle.Contents, name: str, regenerated: bool, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(honest.model)
    FAULTS[name](model)
    contents = replace(honest, model=model.SerializeToString())
    if regenerated:
        contents = answers(model, contents)
    assert not passes(contents, tmp_path / "faulty.edgepack")


def test_an_original_of_noise_does_not_pass(honest: bundle.Contents, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=honest.original[0].shape).astype(np.float32)
    assert not passes(replace(honest, original=[noise]), tmp_path / "noise.edgepack")


def labels_of(rows: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((1, 3), row, np.float32)} for row in range(rows)]


def test_a_batch_is_made_of_different_samples() -> None:
    """Copies of one sample would have one label: a graph that repeats the first would pass."""
    inputs = [Tensor("x", "float32", ("batch", 3))]
    feeds = labels_of(10)
    assert stack_limit(inputs, feeds, "batch") == 8
    stacked = feed_at_size(inputs, feeds, "batch", 8)["x"]
    assert stacked[:, 0].tolist() == list(range(8))
    # More than there are: copies, turned by one place.
    assert feed_at_size(inputs, feeds[:2], "batch", 3)["x"].shape == (3, 3)


def test_a_time_axis_is_no_batch() -> None:
    inputs = [Tensor("x", "float32", ("time", "batch", 3))]
    feeds = [{"x": np.ones((5, 1, 3), np.float32)}] * 4
    assert stack_limit(inputs, feeds, "time") == 1
    assert stack_limit(inputs, feeds, "batch") == 1
    assert feed_at_size(inputs, feeds, "time", 7)["x"].shape == (7, 1, 3)


def test_samples_with_another_scale_are_not_stacked() -> None:
    inputs = [Tensor("x", "float32", ("batch", 3)), Tensor("scale", "float32", ())]
    feeds = [{**feed, "scale": np.float32(i)} for i, feed in enumerate(labels_of(4))]
    assert stack_limit(inputs, feeds, "batch") == 1
