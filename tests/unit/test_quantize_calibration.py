"""Calibration: one run over the samples, in bounded memory, for layers of any width."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.data.samples import Batch
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.calibration import partition
from edgepack.passes.quantize.calibration.calibrators import BINS, GrowingHistogram, Histogram
from edgepack.passes.quantize.memory import estimate_memory
from support.quantize_nets import Arrays, Steps, images, residual, run, snr_db

GROWING = {
    "from small to large": np.geomspace(1e-6, 1e6, 40),
    "from large to small": np.geomspace(1e6, 1e-6, 40),
    "one side": np.full(40, 6.0),
}


def count_growing(batches: list[np.ndarray]) -> Histogram:
    growing = GrowingHistogram()
    for batch in batches:
        growing.add(batch, float(batch.min()), float(batch.max()))
    return growing.histogram()


@pytest.mark.parametrize("scales", GROWING.values(), ids=GROWING)
@pytest.mark.parametrize("kind", ["both", "positive", "negative"])
def test_bins_that_grow_lose_no_count(scales: np.ndarray, kind: str) -> None:
    random = np.random.default_rng(0)
    batches = []
    for scale in scales:
        values = (random.standard_normal(500) * scale).astype(np.float32)
        values[::7] = 0
        batches.append({"positive": np.abs(values), "negative": -np.abs(values)}.get(kind, values))
    everything = np.concatenate(batches)
    found = count_growing(batches)
    assert (found.low, found.high) == (everything.min(), everything.max())
    assert found.zeros == (everything == 0).sum()
    assert BINS - 2 <= len(found.counts) <= 2 * BINS + 2
    exact, _ = np.histogram(everything[everything != 0], found.edges)
    assert (found.counts == exact).all()
    # The order of the batches does not matter.
    again = count_growing(batches[::-1])
    assert (again.counts == found.counts).all()


def test_a_histogram_of_zeros_alone_has_no_range() -> None:
    found = count_growing([np.zeros(10, np.float32)] * 2)
    assert (found.low, found.high, found.zeros) == (0, 0, 20)


def test_the_number_of_cores_does_not_change_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        models.append(quantize(residual(), Arrays(x=images(40)), QuantizeOptions(), Steps()).model)
    assert models[0] == models[1]


class Counted(Arrays):
    """Samples that count how many of them are read."""

    read = 0

    def batches(self, size: int) -> Iterator[Batch]:
        for batch in super().batches(size):
            self.read += batch.count
            yield batch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"calibrator": "minmax"},
        {"rounding": "nearest"},
        {"mode": "weights", "rounding": "gptq"},
    ],
    ids=str,
)
def test_the_samples_are_run_once(options: dict[str, str]) -> None:
    samples = Counted(x=images(40))
    quantize(residual(), samples, QuantizeOptions(**options), Steps())
    # One is read before, to learn the sizes of the activations.
    assert samples.read == 40 + 1


def test_the_steps_are_announced_before_the_first_if_their_number_is_known() -> None:
    class Watched(Steps):
        announced: int | None = None

        def advance(self, steps: int = 1) -> None:
            self.announced = self.announced or self.total
            super().advance(steps)

    samples = Arrays(x=images(40))
    samples.count = 40  # type: ignore[attr-defined]
    progress = Watched()
    quantize(residual(), samples, QuantizeOptions(), progress)
    # 40 samples, and steps for the weights of six layers.
    assert progress.announced == progress.total == progress.done == 53


def test_wide_layers_are_rounded_in_parts_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = residual(), images(40)
    real = run(model, {"x": values})[0]
    quality = []
    for widest in (1152, 36):
        monkeypatch.setattr(partition, "WIDEST", widest)
        result = quantize(model, Arrays(x=values), QuantizeOptions(), Steps())
        quality.append(snr_db(real, run(result.model, {"x": values})[0]))
    assert any("in parts of 36 columns" in note for note in result.notes)
    assert set(result.details["moments"]["parts"].values()) == {36}
    assert quality[1] > quality[0] - 2


def test_layers_too_wide_for_parts_are_rounded_to_the_nearest_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition, "LAYER_BYTES", 4 * 100 * 100)
    result = quantize(residual(), Arrays(x=images(40)), QuantizeOptions(), Steps())
    assert any("rounded to the nearest" in note for note in result.notes)
    assert set(result.details["moments"]["nearest"].values()) == {144}
    plain = quantize(residual(), Arrays(x=images(40)), QuantizeOptions(rounding="nearest"), Steps())
    assert plain.details["moments"] is None


def test_the_accuracy_of_the_moments_is_a_figure() -> None:
    result = quantize(residual(), Arrays(x=images(40)), QuantizeOptions(), Steps())
    moments = result.details["moments"]
    # Each of 40 samples has one position behind the mean.
    assert moments["positions"] == 40
    assert moments["loss_error"] == pytest.approx(np.sqrt(2 / 40), abs=1e-4)


@pytest.mark.parametrize("width", [64, 4608, 65_536, 2_000_000])
def test_the_estimate_of_memory_is_bounded_in_the_width(width: int, tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [width, 2], bytes(8 * width), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph), path)
    size = path.stat().st_size
    found = estimate_memory(path, True, size, QuantizeOptions())
    nearest = estimate_memory(path, True, size, QuantizeOptions(rounding="nearest"))
    # All second moments of the widest would take 16 TB.
    assert nearest <= found < nearest + (1 << 30)
