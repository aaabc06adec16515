"""Scales, zero points and ranges, held against PyTorch's own fbgemm observers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.ao.quantization import HistogramObserver, MinMaxObserver, get_default_qconfig
from torch.ao.quantization.observer import default_per_channel_weight_observer
from torch.ao.quantization.qconfig import default_per_channel_symmetric_qnnpack_qconfig

from edgepack.passes.quantize.calibration import calibrators
from edgepack.passes.quantize.calibration.calibrators import Histogram
from edgepack.passes.quantize.calibration.columns import spread
from edgepack.passes.quantize.scheme import (
    LEVELS,
    WEIGHTS,
    Affine,
    fit_affine,
    fit_row_scales,
    make_room_for_bias,
)

RANDOM = np.random.default_rng(3)
ACTIVATIONS = {
    "normal": RANDOM.standard_normal(20000),
    "shifted": RANDOM.standard_normal(20000) * 3 + 5,
    "relu": np.maximum(RANDOM.standard_normal(20000), 0),
    "relu6": np.clip(RANDOM.standard_normal(20000) * 4, 0, 6),
    "laplace": RANDOM.laplace(size=20000),
    "negative": -np.abs(RANDOM.standard_normal(20000)) - 1,
    "outliers": np.append(RANDOM.standard_normal(20000), [60.0, -45.0]),
}


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram(float(values.min()), float(values.max()))
    for part in np.array_split(values, 7):
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_quantize_as_pytorch_does(name: str) -> None:
    values = ACTIVATIONS[name].astype(np.float32)
    observer = MinMaxObserver(
        dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=False
    )
    observer(torch.from_numpy(values))
    scale, zero_point = observer.calculate_qparams()
    ours = fit_affine(float(values.min()), float(values.max()))
    assert np.float32(ours.scale) == scale.numpy()[0]
    assert ours.zero_point == zero_point.item()
    theirs = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(values), scale.item(), int(zero_point.item()), 0, 255
    )
    # A value half way between two levels may go either way.
    assert np.abs(ours.fake(values) - theirs.numpy()).max() <= ours.scale * 1.001
    assert (ours.fake(values) == theirs.numpy()).mean() > 0.999


def test_weights_quantize_as_pytorch_does() -> None:
    weights = RANDOM.standard_normal((16, 6, 3, 3)).astype(np.float32)
    weights[3] = np.abs(weights[3])
    observer = default_per_channel_weight_observer()
    observer(torch.from_numpy(weights))
    scale, zero_point = observer.calculate_qparams()
    assert (fit_row_scales(weights.reshape(16, -1)).astype(np.float32) == scale.numpy()).all()
    assert not zero_point.any()


@pytest.mark.parametrize("reach", [4.0, 0.02])
def test_qnnpacks_weights_quantize_as_pytorchs_do(reach: float) -> None:
    """Where PyTorch does not raise a scale to 2**-12, which XNNPACK needs."""
    weights = (RANDOM.uniform(-reach, reach, size=(16, 6, 3, 3))).astype(np.float32)
    weights[5] *= 10
    observer = default_per_channel_symmetric_qnnpack_qconfig.weight()
    observer(torch.from_numpy(weights))
    scale, zero_point = (found.numpy() for found in observer.calculate_qparams())
    steps, lowest = WEIGHTS["qnnpack"]
    ours = fit_row_scales(weights.reshape(16, -1), steps).astype(np.float32)
    assert (np.maximum(ours, np.float32(2**-12)) == scale).all()
    assert (ours == scale).any()
    assert not zero_point.any()
    assert lowest == observer.quant_min


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_qnnpacks_activations_quantize_as_pytorchs_do(name: str) -> None:
    low, high = (np.float32(f(ACTIVATIONS[name])) for f in (np.min, np.max))
    ours = fit_affine(float(low), float(high))
    for config, shift in (
        (get_default_qconfig("qnnpack"), 0),
        # It stores s8 where qnnpack stored u8.
        (default_per_channel_symmetric_qnnpack_qconfig, 128),
    ):
        observer = config.activation()
        scale, zero_point = observer._calculate_qparams(torch.tensor(low), torch.tensor(high))
        assert np.float32(ours.scale) == scale.numpy()[0]
        assert ours.zero_point == zero_point.item() + shift


def test_a_constant_activation_has_a_sane_quantization() -> None:
    assert fit_affine(0.0, 0.0) == Affine(1.0, 0)
    assert fit_affine(3.0, 3.0).fake(np.float32([3.0]))[0] == pytest.approx(3.0)
    assert fit_affine(-2.0, -2.0).fake(np.float32([-2.0, 0.0])).tolist() == pytest.approx(
        [-2.0, 0.0]
    )


@pytest.mark.parametrize("size", [1e-7, 1e-12])
def test_small_numbers_are_held_as_well_as_large_ones(size: float) -> None:
    values = RANDOM.uniform(-1, 1, 1000) * size
    found = fit_affine(float(values.min()), float(values.max()))
    assert np.abs(found.fake(values) - values).max() <= found.scale * 0.51
    assert found.scale == pytest.approx(2 * size / 255, rel=0.02)
    assert fit_row_scales(values[None])[0] == pytest.approx(size / 127.5, rel=0.02)


def test_a_bias_beside_vanishing_weights_fits_int32() -> None:
    rows = np.array([[0.0, 1e-12], [0.5, -0.25]])
    scale = make_room_for_bias(fit_row_scales(rows), np.array([100.0, 0.1]), 1e-3)
    assert np.abs(100.0 / (1e-3 * scale[0])) < 2**31
    assert scale[1] == fit_row_scales(rows)[1]


def test_percentile_keeps_what_it_says() -> None:
    values = RANDOM.standard_normal(200_000)
    low, high = calibrators.choose_percentile(counted(values), 99.0)
    assert np.mean((values >= low) & (values <= high)) == pytest.approx(0.99, abs=5e-4)
    assert low == pytest.approx(-2.576, abs=0.03)
    assert calibrators.choose_percentile(counted(values), 100.0) == (values.min(), values.max())


def test_entropy_cuts_rare_outliers_and_keeps_a_uniform_whole() -> None:
    low, high = calibrators.choose_entropy(counted(ACTIVATIONS["outliers"]), LEVELS)
    assert -20 < low < -2
    assert 2 < high < 20
    uniform = RANDOM.uniform(0, 6, 50_000)
    low, high = calibrators.choose_entropy(counted(uniform), LEVELS)
    assert high == pytest.approx(6, rel=0.02)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mse_is_no_worse_than_minmax_nor_than_pytorchs_histogram_observer(name: str) -> None:
    values = ACTIVATIONS[name].astype(np.float32)
    observer = HistogramObserver(
        dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=False
    )
    for part in np.array_split(values, 7):
        observer(torch.from_numpy(part))
    scale, zero_point = (p.item() for p in observer.calculate_qparams())

    def error(quantization: Affine) -> float:
        return float(np.square(quantization.fake(values) - values, dtype=np.float64).mean())

    ours = error(fit_affine(*calibrators.choose_mse(counted(values), LEVELS)))
    assert ours <= error(Affine(scale, int(zero_point))) * 1.02
    assert ours <= error(fit_affine(float(values.min()), float(values.max()))) * 1.02


def test_mse_finds_the_optimum_that_the_calculus_gives() -> None:
    # n values in [-a, a] and one outlier o: n (h + a)^2 / (12 * 255^2) + (o - h)^2 is least at
    # h = (o - c a) / (1 + c) with c = n / (12 * 255^2).
    count, reach, outlier = 100_000, 4.0, 60.0
    values = np.append(RANDOM.uniform(-reach, reach, count), outlier)
    share = count / (12 * 255**2)
    low, high = calibrators.choose_mse(counted(values), LEVELS)
    assert high == pytest.approx((outlier - share * reach) / (1 + share), abs=0.3)
    assert low == pytest.approx(-reach, abs=0.1)


def test_a_histogram_counts_every_value_once() -> None:
    values = ACTIVATIONS["relu"].astype(np.float32)
    histogram = counted(values)
    assert histogram.zeros == (values == 0).sum()
    assert histogram.counts.sum() + histogram.zeros == values.size
    assert (histogram.counts >= 0).all()


def test_spread_takes_evenly_and_moves_its_start() -> None:
    items = np.arange(1000)
    assert (spread(items, 1000, 3) == items).all()
    first, second = spread(items, 100, 0), spread(items, 100, 1)
    assert 80 <= len(first) <= 100
    assert not set(first) & set(second)
