"""One source of samples becomes calibration and evaluation samples, by content and class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Split, has_parts, open_samples
from edgepack.data.samples import Batch
from edgepack.errors import DataError
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.tensor import Tensor
from support.picture_sets import draw, write_class_folders, write_coco, write_yolo

IMAGE = (Tensor("image", "float32", ("batch", 3, 48, 64)),)
ROWS = (Tensor("x", "float32", ("batch", 3)),)
PICTURE = Picture()


def parts(path: Path, split: Split, inputs: tuple[Tensor, ...] = IMAGE) -> list[Batch]:
    """Return all calibration and all evaluation samples, as one batch each."""
    batches = []
    for role in ("calibration", "evaluation"):
        samples = open_samples(str(path), inputs, preprocessing=PICTURE, role=role, split=split)
        batches.append(next(samples.batches(1000)))
    return batches


def contents(batch: Batch) -> set[bytes]:
    (array,) = batch.inputs.values()
    return {sample.tobytes() for sample in array}


def test_pictures_are_divided_by_class_without_a_rest(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["cat", "cow", "dog"], count=10)
    calibration, evaluation = parts(tmp_path, Split(0.2))
    assert calibration.labels is not None
    assert evaluation.labels is not None
    assert np.bincount(calibration.labels).tolist() == [8, 8, 8]
    assert np.bincount(evaluation.labels).tolist() == [2, 2, 2]
    assert not contents(calibration) & contents(evaluation)


def test_names_and_order_do_not_change_the_choice_and_the_seed_does(tmp_path: Path) -> None:
    for number in range(12):
        draw(tmp_path / "first" / f"{number}.png", ())
        target = tmp_path / "second" / f"{97 * number % 101}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "first" / f"{number}.png", target)
    chosen = contents(parts(tmp_path / "first", Split(0.25))[1])
    assert len(chosen) == 3
    assert contents(parts(tmp_path / "second", Split(0.25))[1]) == chosen
    assert contents(parts(tmp_path / "first", Split(0.25, seed=1))[1]) != chosen


def test_copies_of_a_picture_stay_in_one_part_and_are_said(tmp_path: Path) -> None:
    for number in range(6):
        draw(tmp_path / f"{number}.png", ())
        shutil.copy(tmp_path / f"{number}.png", tmp_path / f"{number}-copy.png")
    calibration, evaluation = parts(tmp_path, Split(0.5))
    assert not contents(calibration) & contents(evaluation)
    samples = open_samples(str(tmp_path), IMAGE, preprocessing=PICTURE, split=Split(0.5))
    assert samples.notes == (  # type: ignore[attr-defined]
        "split by --split 0.5, seed 0: 6 calibration and 6 evaluation samples; "
        "6 repeated sample(s) are in the part of their first copy",
    )


def test_arrays_are_divided_as_pictures_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, labels=np.arange(40) % 4)
    calibration, evaluation = parts(tmp_path / "s.npz", Split(0.25), ROWS)
    assert evaluation.labels is not None
    assert set(np.bincount(evaluation.labels)) <= {2, 3}
    assert evaluation.count == 10
    assert contents(calibration) | contents(evaluation) == {row.tobytes() for row in x}
    # Labels stay with their rows.
    for row, label in zip(evaluation.inputs["x"], evaluation.labels, strict=True):
        assert np.flatnonzero((x == row).all(axis=1))[0] % 4 == label


def test_a_share_that_leaves_one_part_empty(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png", ())
    with pytest.raises(DataError) as caught:
        parts(tmp_path, Split(0.01))
    assert caught.value.code == "split-empty"


@pytest.mark.parametrize(
    "names", [("train", "val"), ("train", "valid"), ("calibration", "test"), ("training", "test")]
)
def test_parts_of_a_folder_are_used_by_role(tmp_path: Path, names: tuple[str, str]) -> None:
    for position, name in enumerate(names):
        write_class_folders(tmp_path / name, ["cat", "dog"], count=2 + position)
    assert has_parts(str(tmp_path))
    for role, count in (("calibration", 4), ("evaluation", 6), ("training", None)):
        samples = open_samples(str(tmp_path), IMAGE, preprocessing=PICTURE, role=role)
        batch = next(samples.batches(100))
        assert batch.count == count or (role == "training" and batch.count in (4, 10))


def test_class_folders_that_are_called_as_roles_are_classes(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "val", "bicycle"])
    assert not has_parts(str(tmp_path))


def test_array_files_are_parts_too(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("val", 3)):
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 3), np.float32))
    assert has_parts(str(tmp_path))
    assert next(open_samples(str(tmp_path), ROWS, role="evaluation").batches(9)).count == 3


def test_annotations_show_whether_they_are_divided(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "yolo")
    assert has_parts(str(path))
    assert has_parts(str(path.parent))
    path.write_text(path.read_text().replace("images/val", "images/train"))
    assert not has_parts(str(path))
    assert not has_parts(str(write_coco(tmp_path / "coco")))
