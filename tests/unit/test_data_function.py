"""Samples from a function, and random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.data import open_samples, random_samples
from edgepack.data.fills import integers
from edgepack.runtime.tensor import Tensor

IMAGE = (Tensor("image", "float32", ("batch", 2, 3)),)
VAD = (
    Tensor("audio", "float32", (1, 4)),
    Tensor("state", "float32", (2, 1, 8)),
)


def write(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(f"import numpy as np\n{body}\n")
    return "mine.py:samples"


def test_single_samples_are_gathered_and_each_pass_calls_anew(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "def samples():\n"
        "    for i in range(5):\n"
        "        yield {'image': np.full((2, 3), i, np.float32), 'label': i}",
    )
    samples = open_samples(spec, IMAGE, base=tmp_path)
    for _ in range(2):
        batches = list(samples.batches(2))
        assert [batch.inputs["image"].shape for batch in batches] == [(2, 2, 3)] * 2 + [(1, 2, 3)]
        labels = [batch.labels.tolist() for batch in batches if batch.labels is not None]
        assert labels == [[0, 1], [2, 3], [4]]


def test_the_label_of_one_sample_may_have_a_shape(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "def samples():\n"
        "    for i in range(3):\n"
        "        yield {'image': np.ones((2, 3), np.float32), 'label': np.full((4, 2), i / 2)}",
    )
    first, _ = open_samples(spec, IMAGE, base=tmp_path).batches(2)
    assert first.labels is not None
    assert (first.labels.shape, first.labels[1, 0, 0]) == ((2, 4, 2), 0.5)


def test_batches_of_a_data_loader_are_cut_to_size(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "def samples():\n"
        "    return [{'image': np.ones((4, 2, 3), np.float32), 'labels': np.arange(4)}] * 2",
    )
    samples = open_samples(spec, IMAGE, base=tmp_path)
    assert [batch.count for batch in samples.batches(3)] == [3, 3, 2]


def test_whole_feeds_stay_whole(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "def samples():\n"
        "    for i in range(3):\n"
        "        yield {'audio': np.full(4, i, np.float32),\n"
        "               'state': np.zeros((2, 1, 8), np.float32)}",
    )
    batches = list(open_samples(spec, VAD, base=tmp_path).batches(8))
    assert [batch.count for batch in batches] == [1, 1, 1]
    assert batches[2].inputs["audio"].tolist() == [[2, 2, 2, 2]]
    assert batches[2].inputs["state"].shape == (2, 1, 8)


def test_a_package_beside_the_manifest_can_be_imported(tmp_path: Path) -> None:
    package = tmp_path / "pkg_for_samples"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "data.py").write_text(
        "import torch\n\ndef samples():\n    return [{'image': torch.ones(2, 3)}]\n"
    )
    samples = open_samples("pkg_for_samples.data:samples", IMAGE, base=tmp_path)
    assert next(iter(samples.batches(1))).inputs["image"].sum() == 6


def test_a_file_may_define_dataclasses_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 3.0\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "from neighbour_of_mine import VALUE\n"
        "@dataclass\n"
        "class Maker:\n"
        "    value: float\n"
        "def samples():\n"
        "    yield {'image': np.full((2, 3), Maker(VALUE).value, np.float32)}\n"
    )
    samples = open_samples("mine.py:samples", IMAGE, base=tmp_path)
    assert next(iter(samples.batches(1))).inputs["image"].max() == 3


def test_random_samples_repeat_and_do_not_depend_on_the_batch() -> None:
    inputs = (
        Tensor("ids", "int64", ("batch", "tokens")),
        Tensor("x", "float16", ("batch", 2000)),
    )
    samples = random_samples(inputs, 6, seed=3, sizes={"tokens": 50})
    batches = list(samples.batches(4))
    assert [batch.count for batch in batches] == [4, 2]
    assert batches[0].inputs["ids"].shape == (4, 50)
    assert set(np.unique(batches[0].inputs["ids"])) == {0, 1}
    assert batches[0].inputs["x"].dtype == np.float16
    assert abs(float(batches[0].inputs["x"].astype(np.float32).std()) - 1) < 0.05
    singles = np.concatenate([batch.inputs["x"] for batch in samples.batches(1)])
    np.testing.assert_array_equal(singles[:4], batches[0].inputs["x"])


def test_random_samples_obey_bounds_and_fixed_axes() -> None:
    samples = random_samples((Tensor("i", "uint8", (3, 400)),), 6, fills={"i": integers(200)})
    batches = list(samples.batches(1))
    assert [batch.inputs["i"].shape for batch in batches] == [(3, 400)] * 2
    assert 100 < batches[0].inputs["i"].max() < 200
    states = list(random_samples(VAD, 2).batches(9))
    assert [batch.inputs["state"].shape for batch in states] == [(2, 1, 8)] * 2


def test_at_least_one_random_sample_is_drawn() -> None:
    with pytest.raises(ValueError, match="at least one"):
        random_samples(IMAGE, 0)
