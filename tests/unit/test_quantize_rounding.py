"""Rounding: the pair limit holds for every weight, and compensation pays."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize import QuantizeOptions
from edgepack.passes.quantize.calibration import moments as moments_module
from edgepack.passes.quantize.calibration import partition as partition_module
from edgepack.passes.quantize.calibration.moments import ColumnSums, Moments
from edgepack.passes.quantize.calibration.partition import Partition, divide, divide_all
from edgepack.passes.quantize.layers import Layer, read_layer
from edgepack.passes.quantize.scheme import fit_affine
from edgepack.passes.quantize.weights.int8 import quantize_layer
from edgepack.passes.quantize.weights.rounding import (
    PAIR_LIMIT,
    factorize,
    find_largest_pairs,
    round_compensated,
    round_to_nearest,
)
from support.quantize_nets import Net, run

SHAPES = [(4, 9), (3, 27), (8, 64), (2, 1), (5, 301)]


def hessian(width: int, seed: int = 0) -> np.ndarray:
    """Of strongly correlated inputs, as a real layer has them."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((4 * width + 8, width)) @ random.standard_normal((width, width))
    return (mixed.T @ mixed / len(mixed))[None]


def worst_pair(rows: np.ndarray) -> float:
    """The largest |sum| of what `vpmaddubsw` can add, over all u8 activations, by 255."""
    if rows.shape[-1] % 2:
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)])
    first, second = rows[..., 0::2], rows[..., 1::2]
    choices = [np.zeros_like(first), first, second, first + second]
    return float(np.abs(choices).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_no_pair_exceeds_the_limit(shape: tuple[int, int], spread: float) -> None:
    random = np.random.default_rng(7)
    # Deliberately far outside s8, and all of one sign in the first row.
    steps = random.standard_normal(shape) * 127 * spread
    steps[0] = np.abs(steps[0])
    for rows in (
        round_to_nearest(steps, True),
        round_compensated(steps[None], factorize(hessian(shape[1])), True)[0][0],
    ):
        assert rows.min() >= -128
        assert rows.max() <= 127
        assert worst_pair(rows) <= PAIR_LIMIT
        assert find_largest_pairs(rows).max() <= PAIR_LIMIT


def test_without_the_limit_nearest_is_plain_rounding() -> None:
    steps = np.random.default_rng(2).uniform(-127, 127, (6, 40))
    assert (round_to_nearest(steps, False) == np.rint(steps)).all()
    # And the limit changes only the pairs that exceed it.
    limited = round_to_nearest(steps, True)
    changed = (limited != np.rint(steps)).reshape(6, 20, 2).any(axis=2)
    pairs = np.rint(steps).reshape(6, 20, 2)
    over = (np.sign(pairs[..., 0]) == np.sign(pairs[..., 1])) & (
        np.abs(pairs.sum(axis=2)) > PAIR_LIMIT
    )
    assert (changed <= over).all()


@pytest.mark.parametrize("paired", [False, True])
def test_compensation_loses_less_than_rounding_to_the_nearest(paired: bool) -> None:
    moments = hessian(96, seed=4)
    steps = np.random.default_rng(5).standard_normal((1, 24, 96)) * 30
    loss = []
    for rows in (
        round_to_nearest(steps, paired),
        round_compensated(steps, factorize(moments), paired)[0],
    ):
        error = rows - steps
        loss.append(np.einsum("grk,gkl,grl->", error, moments, error))
    assert loss[1] < 0.7 * loss[0]


def test_compensation_with_uncorrelated_inputs_is_rounding_to_the_nearest() -> None:
    steps = np.random.default_rng(6).standard_normal((2, 5, 33)) * 40
    identity = np.tile(np.eye(33), (2, 1, 1))
    rows, _ = round_compensated(steps, factorize(identity), False)
    assert (rows == round_to_nearest(steps, False)).all()


def test_an_input_that_was_always_zero_does_not_break_compensation() -> None:
    rows, _ = round_compensated(np.ones((1, 3, 4)) * 5.2, factorize(np.zeros((1, 4, 4))), True)
    assert (rows == 5).all()


def convolution(cin: int, cout: int, kernel: int, groups: int) -> Layer:
    net = Net(9)
    out = net.conv("x", cin, cout, kernel, groups)
    view = GraphView(net.model({"x": [1, cin, 8, 8]}, [out]))
    layer = read_layer(view, 0)
    assert isinstance(layer, Layer)
    return layer


def moments_of(layer: Layer) -> Moments:
    width = layer.rows.shape[1]
    square = np.tile(hessian(width, 3), (layer.groups, 1, 1))
    zeros = np.zeros((layer.groups, width))
    return Moments(zeros, zeros, square, Partition(layer.groups, width, width))


@pytest.mark.parametrize("shape", [(3, 8, 3, 1), (8, 8, 5, 4), (5, 4, 1, 1), (6, 12, 3, 6)])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("span", ["pair-safe", "reduced"])
def test_a_layers_weights_cannot_saturate(
    shape: tuple[int, int, int, int], rounding: str, span: str
) -> None:
    layer = convolution(*shape)
    options = QuantizeOptions(range=span, rounding=rounding)
    found = quantize_layer(layer, fit_affine(0, 1), moments_of(layer), options)
    assert worst_pair(found.rows.astype(np.int64)) <= PAIR_LIMIT
    stored = layer.stored(found.rows)
    # In MLAS's order: kernel row, kernel column, input channel of the group.
    again = np.moveaxis(stored, 1, -1).reshape(len(stored), -1)
    assert (again == found.rows).all()


def test_depthwise_weights_keep_the_full_range() -> None:
    layer = convolution(6, 6, 3, 6)
    found = quantize_layer(layer, fit_affine(0, 1), None, QuantizeOptions(bias_correction=False))
    assert (np.abs(found.rows.astype(int)).max(axis=1) >= 127).all()
    assert (found.factor == 1).all()
    # Two outputs for each channel go through the matrix product, which pairs.
    assert convolution(6, 12, 3, 6).paired


def test_inputs_that_hardly_vary_around_a_large_mean_are_no_obstacle() -> None:
    random = np.random.default_rng(0)
    values = (1000 + 1e-3 * random.standard_normal((50, 64))).astype(np.float32)
    cut = (values.T @ values / 50 - np.outer(values.mean(0), values.mean(0)))[None]
    # Such a difference of large numbers is not even positive definite.
    assert np.linalg.eigvalsh(cut).min() < 0
    feedback = factorize(cut)
    assert np.isfinite(feedback.weights).all()
    rows, _ = round_compensated(random.standard_normal((1, 3, 64)) * 40, feedback, True)
    assert worst_pair(rows) <= PAIR_LIMIT


def test_moments_of_values_far_from_zero_keep_their_digits() -> None:
    random = np.random.default_rng(1)
    values = (1000 + random.standard_normal((900, 5))).astype(np.float32)
    sums = ColumnSums(perceptron(5), Partition(1, 5, 5))
    for number, part in enumerate(np.array_split(values, 6)):
        sums.add(part, len(part), number)
    moments = sums.moments(None)
    assert moments.loss(True, 0.0)[0] == pytest.approx(np.cov(values.T, bias=True), abs=1e-3)
    assert moments.mean[0] == pytest.approx(values.mean(axis=0, dtype=np.float64))
    assert moments.positions == 900


def perceptron(width: int) -> Layer:
    net = Net(9)
    model = net.model({"x": ["n", width]}, [net.gemm("x", width, 4)])
    layer = read_layer(GraphView(model), 0)
    assert isinstance(layer, Layer)
    return layer


def test_all_samples_count_alike_although_fewer_positions_of_later_ones_are_read() -> None:
    # A mean that rises from sample to sample, 64 positions each.
    sums = ColumnSums(perceptron(4), Partition(1, 4, 4))
    random = np.random.default_rng(3)
    for number in range(400):
        sums.add(random.standard_normal((64, 4)).astype(np.float32) + number, 1, number)
    moments = sums.moments(None)
    assert moments.mean == pytest.approx(199.5, abs=2)
    assert moments.loss(True, 0.0)[0].mean() == pytest.approx(400**2 / 12, rel=0.05)
    # A few thousand positions of 25,600 suffice.
    assert 2000 < moments.positions < 8000


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "most", "width", "parts"),
    [(64, 3, 1, 200, 144, 4), (7, 3, 1, 20, 16, 4), (64, 1, 2, 8, 8, 4), (6, 5, 6, 40, 25, 1)],
)
def test_a_wide_layer_is_divided_without_cutting_a_pair(
    channels: int, kernel: int, groups: int, most: int, width: int, parts: int
) -> None:
    layer = convolution(channels, 12, kernel, groups)
    partition = divide(layer, most)
    assert (partition.width, partition.parts) == (width, parts)
    columns = layer.rows.shape[1]
    numbers = np.tile(np.arange(1.0, columns + 1), (groups, 2, 1))
    divided = partition.split(numbers)
    assert divided.shape == (groups * parts, 2, width)
    assert (partition.join(divided) == numbers).all()
    # Both columns of a pair stand beside each other; zeros pad the last part.
    first, second = divided[:, 0, : width // 2 * 2 : 2], divided[:, 0, 1::2]
    assert ((second == first + 1) | (second == 0)).all()


def test_a_wide_layer_reads_its_columns_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convolution(8, 4, 3, 1)
    values = np.random.default_rng(4).standard_normal((6, 8, 8, 8)).astype(np.float32)
    found = []
    for size in (2**25, 64 * 72 * 4):
        monkeypatch.setattr(moments_module, "COLUMN_BYTES", size)
        sums = ColumnSums(layer, Partition(1, 72, 72))
        sums.add(values, 6, 0)
        found.append(sums.moments(None))
    assert found[0].positions == found[1].positions == 6 * 64
    assert found[1].mean == pytest.approx(found[0].mean, abs=1e-6)
    assert found[1].variance == pytest.approx(found[0].variance, abs=1e-5)


def test_a_divided_layer_cannot_saturate_and_loses_little() -> None:
    layer = convolution(32, 8, 3, 1)
    whole = moments_of(layer)
    partition = divide(layer, 100)
    order = partition.order
    assert order is not None
    parts = order.reshape(partition.parts, -1)
    blocks = np.stack([whole.variance[0][np.ix_(part, part)] for part in parts])
    divided = Moments(whole.mean, whole.error, blocks, partition)
    loss = []
    for moments, rounding in ((whole, "gptq"), (divided, "gptq"), (whole, "nearest")):
        found = quantize_layer(layer, fit_affine(0, 1), moments, QuantizeOptions(rounding=rounding))
        assert worst_pair(found.rows.astype(np.int64)) <= PAIR_LIMIT
        error = found.rows * found.scale[:, None] - layer.rows
        loss.append(np.einsum("rk,kl,rl->", error, whole.variance[0], error))
    assert loss[0] < loss[1] < loss[2]


def test_layers_that_are_too_wide_give_way_until_all_of_them_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [convolution(8, 4, 3, 1), convolution(64, 4, 3, 1)]
    layers[1].input = "y"
    assert [p.parts for p in divide_all(layers, True).values()] == [1, 1]
    monkeypatch.setattr(partition_module, "MOMENT_BYTES", 300_000)
    small, wide = divide_all(layers, True).values()
    assert (small.parts, wide.parts) == (1, 8)
    monkeypatch.setattr(partition_module, "LAYER_BYTES", 100_000)
    assert [p.width for p in divide_all(layers, True).values()] == [72, 0]
    assert [p.width for p in divide_all(layers, False).values()] == [0, 0]


@pytest.mark.parametrize(
    ("groups", "stride", "dilation", "pads"), [(1, 1, 1, 1), (2, 2, 1, 0), (4, 1, 2, 2)]
)
def test_rows_times_columns_is_the_convolution(
    groups: int, stride: int, dilation: int, pads: int
) -> None:
    from edgepack.passes.quantize.calibration.columns import extract_columns

    net = Net(3)
    weight = net.constant(net.weights(8, 4 // groups, 3, 3))
    settings = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pads] * 4}
    out = net.op("Conv", "x", weight, group=groups, **settings)
    model = net.model({"x": ["n", 4, 9, 9]}, [out])
    layer = read_layer(GraphView(model), 0)
    assert isinstance(layer, Layer)
    x = np.random.default_rng(0).standard_normal((3, 4, 9, 9)).astype(np.float32)
    unfolded, _ = extract_columns(layer, x, 10_000, 0)
    found = np.einsum("grk,gpk->pgr", layer.per_group(layer.rows), unfolded)
    expected = run(model, {"x": x})[0].transpose(0, 2, 3, 1)
    assert found.reshape(expected.shape) == pytest.approx(expected, abs=1e-5)
