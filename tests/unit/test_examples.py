"""The example models beside EfficientNet: what they claim holds, on their real data."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from edgepack.errors import DataError
from edgepack.spec import manifest

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
EXAMPLES = MANIFESTS.with_name("examples")
# Where the manifest claims 93.15 % of all 10,000; another CPU's rounding may move one or two.
RIGHT_OF_FIRST_2000 = 1870


def load(name: str) -> ModuleType:
    """A module of `examples/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators in many threads stall where other processes want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fashion() -> ModuleType:
    module = load("fashion_resnet")
    try:
        module.pictures("test")
    except DataError as error:
        pytest.skip(f"{error.why}; {error.hint}")
    return module


@pytest.fixture(scope="module")
def trained(fashion: ModuleType) -> torch.nn.Module:
    found = manifest.load(MANIFESTS / "fashion-resnet.toml")
    network: torch.nn.Module = fashion.model(**found.arch_args)
    network.load_state_dict(load_file(EXAMPLES / "weights" / "fashion-resnet.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def silero() -> ModuleType:
    module = load("silero_vad")
    try:
        module.pretrained()
    except DataError as error:
        pytest.skip(f"{error.why}; {error.hint}")
    return module


def assert_feeds(feed: Mapping[str, Any], name: str, whole: bool) -> None:
    """A sample has what the manifest states, with the batch axis in it or without."""
    for tensor in manifest.load(MANIFESTS / f"{name}.toml").inputs:
        array = feed[tensor.name]
        shape = tensor.shape if whole else tensor.shape[1:]
        assert array.dtype == np.dtype(tensor.dtype)
        assert array.shape == tuple(1 if isinstance(dim, str) else dim for dim in shape)
        assert np.isfinite(array).all()


def test_committed_weights_reach_the_accuracy_that_is_claimed(
    fashion: ModuleType, trained: torch.nn.Module
) -> None:
    images, labels = fashion.pictures("test")
    right = round(2000 * fashion.top1(trained, images[:2000], labels[:2000]))
    assert abs(right - RIGHT_OF_FIRST_2000) <= 2


def test_fashion_samples_are_what_the_manifest_states(fashion: ModuleType) -> None:
    calibration = list(fashion.calibration())
    assert len(calibration) == 500
    assert all("label" not in sample for sample in calibration)
    images, labels = fashion.pictures("test")
    for index, sample in enumerate(itertools.islice(fashion.evaluation(), 50)):
        assert_feeds(sample, "fashion-resnet", whole=False)
        assert sample["label"] == labels[index]
        pixels = sample["image"] * fashion.STD + fashion.MEAN
        assert np.array_equal(np.rint(pixels[0] * 255), images[index])


def test_calibration_is_standardised_and_none_of_it_judges(fashion: ModuleType) -> None:
    calibration = np.stack([sample["image"] for sample in fashion.calibration()])
    assert abs(float(calibration.mean())) < 0.05
    assert abs(float(calibration.std()) - 1) < 0.05
    judged = {sample["image"].tobytes() for sample in fashion.evaluation()}
    assert len(judged) == 10_000
    assert not any(picture.tobytes() in judged for picture in calibration)


def test_augmentation_moves_and_mirrors_and_keeps_the_scale(fashion: ModuleType) -> None:
    images, _ = fashion.pictures("train")
    batch = torch.from_numpy(fashion.standardise(images[:64]))
    once, again = (fashion.augment(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == batch.shape
    # Every picture is one of the 2 x 5 x 5 that mirroring and two pixels either way can give.
    wide = torch.nn.functional.pad(batch, (2, 2, 2, 2), value=-fashion.MEAN / fashion.STD)
    for got, picture in zip(once, wide, strict=True):
        assert any(
            torch.equal(got, kind[:, y : y + 28, x : x + 28])
            for kind in (picture, picture.flip(-1))
            for y in range(5)
            for x in range(5)
        )


def test_silero_rebuild_equals_the_package_on_real_speech(silero: ModuleType) -> None:
    folder = silero.prepared(silero.ONNX).parent
    session = onnxruntime.InferenceSession(str(folder / silero.ONNX))
    network = silero.pretrained()
    speech: list[float] = []
    for feed in itertools.islice(silero.evaluation(), 0, None, 3):
        expected, expected_state = session.run(
            None, {"input": feed["audio"], "state": feed["state"], "sr": np.array(16_000)}
        )
        with torch.inference_mode():
            found, state = network(*(torch.from_numpy(feed[k]) for k in ("audio", "state")))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        # The cell state reaches 40.
        np.testing.assert_allclose(state.numpy(), expected_state, rtol=1e-4, atol=1e-4)
        speech.append(found.item())
    # Meetings: people speak, and pause.
    assert 0.2 < np.mean(np.array(speech) > 0.5) < 0.8


def test_silero_takes_any_batch_with_the_same_answers(silero: ModuleType) -> None:
    feeds = list(itertools.islice(silero.calibration(), 20, 25))
    audio = torch.from_numpy(np.concatenate([feed["audio"] for feed in feeds]))
    state = torch.from_numpy(np.concatenate([feed["state"] for feed in feeds], axis=1))
    network = silero.pretrained()
    with torch.inference_mode():
        together, _ = network(audio, state)
        alone = [network(audio[i : i + 1], state[:, i : i + 1])[0] for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_silero_samples_are_what_the_manifest_states(silero: ModuleType) -> None:
    parts: list[Iterator[Mapping[str, np.ndarray]]] = [silero.calibration(), silero.evaluation()]
    for part, count in zip(parts, (531, 752), strict=True):
        feeds = list(part)
        assert len(feeds) == count
        for feed in feeds:
            assert_feeds(feed, "silero-vad", whole=True)
        # A stream starts from zeros, and its state then grows.
        assert not feeds[0]["state"].any()
        assert all(feed["state"].any() for feed in feeds[-4:])
