"""The bound on a node's partial sums, against the sums themselves, added up one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from edgepack.onnx_tools.view import GraphView
from edgepack.passes.half.measurements import measure
from edgepack.passes.half.sums import partial_sum
from support.quantize_nets import Arrays, Net, run

X = (np.random.default_rng(3).standard_normal((4, 6, 8, 8)) * 3).astype(np.float32)


def bound(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> float:
    """What is measured of the model's last node."""
    view = GraphView(model)
    index = len(view.nodes) - 1
    found = partial_sum(view, index, model.opset_import[0].version)
    assert found is not None
    feeds = Arrays(**feed)
    return measure(model, [], set(), {index: found}, feeds, 2, lambda n: None, lambda n: None).sums[
        index
    ]


def one(
    operator: str, *constants: np.ndarray, opset: int = 18, shape: tuple[int, ...] = X.shape,
    outputs: int = 1, **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node that reads x and constants."""
    net = Net()
    names = [net.constant(value) for value in constants]
    y = net.op(operator, "x", *names, outputs=outputs, **attributes)
    return net.model({"x": ["n", *shape[1:]]}, [y], opset)


def partial_sums(products: np.ndarray, axes: tuple[int, ...]) -> float:
    """The largest sum of the products of one sign: no order of adding them up reaches beyond."""
    positive = np.where(products > 0, products, 0).sum(axes).max()
    negative = np.where(products < 0, -products, 0).sum(axes).max()
    return float(max(positive, negative))


def test_a_product() -> None:
    weights = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    found = bound(one("MatMul", weights), {"x": X})
    products = X[..., :, None] * weights
    assert found == pytest.approx(float(np.abs(products).sum(-2).max()), rel=1e-5)
    assert found >= partial_sums(products, (-2,))


def test_a_gemm_with_its_factors_and_bias() -> None:
    x = X.reshape(4 * 6 * 8, 8)
    weights = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    bias = np.random.default_rng(1).standard_normal(5).astype(np.float32)
    model = one("Gemm", weights, bias, shape=x.shape, transB=1, alpha=-2.0, beta=-3.0)
    products = np.abs(x[:, None, :] * weights).sum(-1)
    expected = (2 * products + 3 * np.abs(bias)).max()
    assert bound(model, {"x": x}) == pytest.approx(float(expected), rel=1e-5)


def test_a_convolution() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 6, 3, 3)).astype(np.float32)
    bias = np.random.default_rng(1).standard_normal(3).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(X, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwkl,ockl->nohw", np.abs(windows), np.abs(weights))
    expected = (sums + np.abs(bias)[:, None, None]).max()
    assert bound(one("Conv", weights, bias), {"x": X}) == pytest.approx(float(expected), rel=1e-5)


def axes(*values: int) -> np.ndarray:
    return np.array(values)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: one("ReduceMean", axes(2, 3)), np.abs(X).sum((2, 3)).max()),
        (lambda: one("ReduceMean", opset=17, axes=[2, 3]), np.abs(X).sum((2, 3)).max()),
        (lambda: one("ReduceMean"), np.abs(X).reshape(2, -1).sum(1).max()),
        (lambda: one("ReduceSum", axes(1), keepdims=0), np.abs(X).sum(1).max()),
        (lambda: one("ReduceL1", axes(-1)), np.abs(X).sum(3).max()),
        (lambda: one("ReduceL2", axes(-1)), np.square(X).sum(3).max()),
        (lambda: one("ReduceL2", opset=17, axes=[1]), np.square(X).sum(1).max()),
        (lambda: one("ReduceSumSquare", axes(1, 2)), np.square(X).sum((1, 2)).max()),
        (lambda: one("GlobalAveragePool"), np.abs(X).sum((2, 3)).max()),
        (lambda: one("Einsum", equation="nchw->nc"), np.abs(X).sum((2, 3)).max()),
        (lambda: one("Sum", X[:1], -X[:1]), (np.abs(X) + 2 * np.abs(X[:1])).max()),
        (
            lambda: one("LayerNormalization", np.ones(8, np.float32)),
            np.square(X).mean(-1).max(),
        ),
        (
            lambda: one("LayerNormalization", np.ones((6, 8, 8), np.float32), axis=1),
            np.square(X).mean((1, 2, 3)).max(),
        ),
        (
            lambda: one(
                "InstanceNormalization", np.ones(6, np.float32), np.zeros(6, np.float32)
            ),
            np.square(X).mean((2, 3)).max(),
        ),
        (lambda: one("Softmax", axis=1), np.exp(X - X.max(1, keepdims=True)).sum(1).max()),
        (lambda: one("LogSoftmax"), np.exp(X - X.max(-1, keepdims=True)).sum(-1).max()),
    ],
)  # fmt: skip
def test_reductions_norms_and_softmax(
    model: Callable[[], onnx.ModelProto], expected: np.floating
) -> None:
    # A batch of two is measured at a time; a reduction over all takes both.
    assert bound(model(), {"x": X}) == pytest.approx(float(expected), rel=1e-4)


def test_an_average_counts_its_whole_window() -> None:
    model = one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)
    padded = np.pad(np.abs(X), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = float(windows.sum((-2, -1)).max())
    assert bound(model, {"x": X}) == pytest.approx(expected, rel=1e-5)


def test_a_transposed_convolution_overlaps() -> None:
    weights = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    model = one("ConvTranspose", weights)
    expected = run(one("ConvTranspose", np.abs(weights)), {"x": np.abs(X)})[0].max()
    assert bound(model, {"x": X}) == pytest.approx(float(expected), rel=1e-5)
    assert bound(model, {"x": X}) >= np.abs(run(model, {"x": X})[0]).max()


def lstm(steps: int, x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> float:
    """The largest value inside an LSTM, gate by gate (ONNX: i, o, f, c), added up in the open."""
    hidden = r.shape[1]
    h = np.zeros((x.shape[1], hidden))
    c = np.zeros_like(h)
    largest = 0.0
    for step in range(steps):
        gates = x[step] @ w.T + h @ r.T + b[: 4 * hidden] + b[4 * hidden :]
        partial = np.abs(x[step]) @ np.abs(w).T + np.abs(h) @ np.abs(r).T
        i, o, f, g = np.split(gates, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        largest = max(largest, float(partial.max()), float(np.abs(gates).max()), np.abs(c).max())
    return largest


def test_a_recurrent_layer_is_bounded_gates_and_cell() -> None:
    random = np.random.default_rng(0)
    hidden, inputs, steps = 5, 8, 40
    x = (random.standard_normal((steps, 2, inputs)) * 2).astype(np.float32)
    w = random.standard_normal((1, 4 * hidden, inputs)).astype(np.float32)
    r = random.standard_normal((1, 4 * hidden, hidden)).astype(np.float32)
    b = random.standard_normal((1, 8 * hidden)).astype(np.float32)
    net = Net()
    names = [net.constant(value) for value in (w, r, b)]
    y = net.op("LSTM", "x", *names, hidden_size=hidden)
    model = net.model({"x": ["steps", 2, inputs]}, [y])
    view = GraphView(model)
    found = partial_sum(view, 0, 18)
    assert found is not None
    # The samples stand along the steps here: all of them are one sequence.
    measured = measure(
        model, [], set(), {0: found}, Arrays(x=x), steps, lambda n: None, lambda n: None
    ).sums[0]
    inside = lstm(steps, x, w[0], r[0], b[0])
    assert inside <= measured < 10 * inside


def test_what_does_not_sum_has_no_bound() -> None:
    model = one("Relu")
    assert partial_sum(GraphView(model), 0, 18) is None
