"""Labels arrive from the layouts that people have their pictures in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack.data import Classes, open_samples
from edgepack.data.stream import SampleStream
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.tensor import Tensor
from support.picture_sets import (
    NAMES,
    SHAPES,
    SIZE,
    coco_document,
    draw,
    write_class_folders,
    write_coco,
    write_yolo,
)

IMAGE = (Tensor("image", "float32", ("batch", 3, 32, 32)),)
SQUARE = Picture(resize=(32, 32))
BOXED = Picture(letterbox=32)


def stream_of(
    path: Path,
    role: str = "evaluation",
    classes: Classes | None = None,
    picture: Picture = SQUARE,
) -> SampleStream:
    stream = open_samples(str(path), IMAGE, preprocessing=picture, role=role, classes=classes)
    assert isinstance(stream, SampleStream)
    return stream


def labels_of(
    path: Path,
    role: str = "evaluation",
    classes: Classes | None = None,
    picture: Picture = SQUARE,
) -> np.ndarray:
    batches = list(stream_of(path, role, classes, picture).batches(8))
    return np.concatenate([batch.labels for batch in batches if batch.labels is not None])


def test_class_folders_are_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["cat", "Zebra", "dog"])
    stream = stream_of(tmp_path)
    # As torchvision sorts them: upper case first.
    assert stream.class_names == ("Zebra", "cat", "dog")
    assert labels_of(tmp_path).tolist() == [0, 0, 1, 1, 2, 2]


def test_an_empty_class_folder_keeps_its_index(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["cat", "dog"])
    (tmp_path / "cow").mkdir()
    stream = stream_of(tmp_path)
    assert stream.class_names == ("cat", "cow", "dog")
    assert labels_of(tmp_path).tolist() == [0, 0, 2, 2]
    assert stream.notes == ("1 class folder(s) have no pictures, such as cow",)


def test_names_of_the_model_fix_the_indices_of_class_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["cat", "dog"])
    classes = Classes(("dog", "horse", "cat"), "the model")
    assert labels_of(tmp_path, classes=classes).tolist() == [2, 2, 0, 0]
    assert stream_of(tmp_path, classes=classes).class_names == ("dog", "horse", "cat")


@pytest.mark.parametrize("layout", ["beside", "single", "off"])
def test_subfolders_that_are_no_classes_give_no_labels(tmp_path: Path, layout: str) -> None:
    write_class_folders(tmp_path, ["2024"] if layout == "single" else ["2024", "2025"])
    if layout == "beside":
        draw(tmp_path / "one.png", ())
    stream = stream_of(tmp_path, classes=Classes(folders=layout != "off"))
    assert all(batch.labels is None for batch in stream.batches(8))
    # It is said, unless the user says so.
    assert ("no labels" in "".join(stream.notes)) == (layout != "off")


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "names"),
    [
        (("7", "0"), Classes(), [7, 0], ()),
        (("pear", "apple"), Classes(), [1, 0], ("apple", "pear")),
        (("pear", "apple"), Classes(("pear", "fig", "apple"), "x"), [0, 2], None),
        (("1", "2"), Classes(("pear", "fig", "apple"), "x"), [1, 2], None),
        # Classes that are called by numbers, in another order than the indices.
        (("1", "2"), Classes(("2", "1"), "x"), [1, 0], None),
    ],
)
def test_labels_csv_has_indices_or_names(
    tmp_path: Path,
    labels: tuple[str, str],
    classes: Classes,
    expected: list[int],
    names: tuple[str, ...] | None,
) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, ())
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{labels[0]}\nb.png,{labels[1]}\n")
    assert labels_of(tmp_path, classes=classes).tolist() == expected
    expected_names = classes.names if names is None else names
    assert stream_of(tmp_path, classes=classes).class_names == expected_names


def test_boxes_are_in_pixels_of_the_letterboxed_input(tmp_path: Path) -> None:
    labels = labels_of(write_coco(tmp_path), picture=BOXED)
    # 64 x 48 becomes 32 x 24, four pixels below the top; M is 2, that of picture a.
    none = [-1, 0, 0, 0, 0]
    expected = [
        [[0, 4, 6, 12, 14], [1, 15, 9, 31, 27]],
        [[1, 1, 5, 6, 24], none],
        [none, none],
    ]
    assert labels.dtype == np.float32
    assert labels.tolist() == expected


def test_boxes_surround_the_pixels_of_their_shapes_in_the_input(tmp_path: Path) -> None:
    """The transformation of the boxes is that of the picture, whatever the preprocessing is."""
    write_coco(tmp_path)
    for picture in (BOXED, SQUARE, Picture(resize=40, crop=32), Picture(letterbox=(32, 32))):
        batch = next(stream_of(tmp_path, picture=picture).batches(8))
        assert batch.labels is not None
        # Bright blue pixels of picture a are those of its square, the edges are interpolated.
        left, top, right, bottom = batch.labels[0, 1, 1:]
        rows, columns = np.nonzero(batch.inputs["image"][0, 2] > 0.6)
        extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(extent, (left, top, right, bottom), atol=1)


def test_yolo_and_coco_give_the_same_boxes(tmp_path: Path) -> None:
    coco = labels_of(write_coco(tmp_path / "coco"), picture=BOXED)
    path = write_yolo(tmp_path / "yolo")
    trained = labels_of(path, "calibration", picture=BOXED)
    validated = labels_of(path, "evaluation", picture=BOXED)
    # Pictures a and c are for training, b for validation.
    np.testing.assert_allclose(trained, coco[[0, 2]], atol=1e-4)
    np.testing.assert_allclose(validated, coco[1:2, :1], atol=1e-4)
    assert stream_of(path, picture=BOXED).class_names == NAMES
    assert "1 picture(s) without a file of boxes count as empty" in (
        stream_of(path, "calibration", picture=BOXED).notes
    )


def test_a_folder_of_annotations_is_as_good_as_the_file(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    path = write_yolo(tmp_path / "yolo")
    # Without data.yaml, the folders images and labels have the names of classes.txt.
    path.rename(tmp_path / "data.yaml.old")
    (tmp_path / "yolo/classes.txt").write_text("disc\nsquare\n")
    for folder in ("coco", "yolo"):
        assert stream_of(tmp_path / folder, picture=BOXED).class_names == NAMES
    assert labels_of(tmp_path / "yolo", picture=BOXED)[0, 0].tolist() == pytest.approx(
        [1, 1, 5, 6, 24], abs=1e-4
    )


def test_coco_finds_its_pictures_as_its_authors_lay_them_out(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        write_coco(tmp_path / split)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        target = tmp_path / "annotations" / f"instances_{split}.json"
        (tmp_path / split / "instances.json").rename(target)
    draw(tmp_path / "val2017" / "a.png", SHAPES["a"], seed=9)
    first = next(stream_of(tmp_path, "calibration", picture=BOXED).batches(1))
    second = next(stream_of(tmp_path, "evaluation", picture=BOXED).batches(1))
    assert not np.array_equal(first.inputs["image"], second.inputs["image"])


def test_annotations_beside_the_folders_of_the_parts_name_the_classes(tmp_path: Path) -> None:
    """As exports have it: data.yaml, train/images, train/labels, valid/images, valid/labels."""
    path = write_yolo(tmp_path)
    for split, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / kind / split).rename(tmp_path / name / kind)
    (tmp_path / "images").rmdir()
    (tmp_path / "labels").rmdir()
    # The paths are those of a machine where the file was one folder deeper.
    path.write_text("train: ../train/images\nval: ../valid/images\nnames: [disc, square]\n")
    assert labels_of(tmp_path, picture=BOXED)[0, 0].tolist() == pytest.approx(
        [1, 1, 5, 6, 24], abs=1e-4
    )


def test_polygons_and_key_points_of_yolo_become_boxes(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    file = tmp_path / "labels/val/b.txt"
    box = labels_of(path, picture=BOXED)
    left, right, top, bottom = 2 / 64, 12 / 64, 2 / 48, 40 / 48
    file.write_text(f"1 {left} {top} {right} {top} {right} {bottom} {left} {bottom}\n")
    np.testing.assert_allclose(labels_of(path, picture=BOXED), box, atol=1e-4)
    path.write_text(path.read_text() + "kpt_shape: [1, 3]\n")
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    file.write_text(f"1 {x} {y} {width} {height} 0.1 0.1 2\n")
    np.testing.assert_allclose(labels_of(path, picture=BOXED), box, atol=1e-4)


def test_boxes_without_an_area_repeated_ones_and_crowds_are_left_out_and_said(
    tmp_path: Path,
) -> None:
    document = coco_document()
    for change in ({"bbox": [3, 3, 0, 5]}, {}, {"iscrowd": 1}):
        document["annotations"].append({**document["annotations"][2], "id": 9, **change})
    stream = stream_of(write_coco(tmp_path, document), picture=BOXED)
    assert stream.notes == (
        "1 crowd region(s) are left out",
        "2 box(es) without an area or repeated are left out",
    )
    assert labels_of(tmp_path, picture=BOXED)[1, :, 0].tolist() == [1, -1]


def test_a_crop_cuts_boxes_and_drops_those_outside(tmp_path: Path) -> None:
    """Of 64 x 48, the centre of 32 x 32 begins at (16, 8)."""
    labels = labels_of(write_coco(tmp_path), picture=Picture(crop=32))
    assert labels[0].tolist() == [[0, 0, 0, 8, 12], [1, 14, 2, 32, 32]]
    assert labels[1, 0].tolist() == [-1, 0, 0, 0, 0]


def test_boxes_belong_to_the_upright_picture(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    with Image.open(tmp_path / "a.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    labels = labels_of(path, picture=BOXED)
    assert labels[0, 0].tolist() == [0, 4, 6, 12, 14]
    assert json.loads(path.read_text())["images"][0]["width"] == SIZE[0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # Ultralytics' LetterBox: corner round(margin / 2 - 0.1), size round(side x ratio).
        ((64, 48), (0, 4, 32, 28)),
        ((48, 64), (4, 0, 28, 32)),
        ((100, 37), (0, 10, 32, 22)),
        ((33, 64), (8, 0, 24, 32)),
        ((7, 64), (14, 0, 18, 32)),
    ],
)
def test_a_letterbox_centres_the_picture_on_grey(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "a.png")
    picture = Picture(letterbox=32, scale=1.0, layout="nhwc")
    array = picture.to_array((tmp_path / "a.png").read_bytes())
    assert set(np.unique(array)) == {114.0, 255.0}
    rows, columns = np.nonzero(array[:, :, 0] == 255)
    extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert extent == expected


def interpolate(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as OpenCV's INTER_LINEAR: between the four pixels around each centre."""
    result = pixels.astype(np.float64)
    for axis, length in ((1, size[0]), (0, size[1])):
        count = result.shape[axis]
        centres = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
        first = np.minimum(centres.astype(int), count - 2)
        shares = np.expand_dims(centres - first, (1, 2) if axis == 0 else (0, 2))
        lower, upper = np.take(result, first, axis), np.take(result, first + 1, axis)
        result = lower * (1 - shares) + upper * shares
    return result


@pytest.mark.parametrize(("size", "scaled"), [((97, 61), (32, 20)), ((20, 31), (21, 32))])
def test_without_antialias_a_resize_is_that_of_opencv(
    tmp_path: Path, size: tuple[int, int], scaled: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = Picture(letterbox=32, antialias=False, scale=1.0, layout="nhwc")
    array = picture.to_array((tmp_path / "a.png").read_bytes())
    left, top = (32 - scaled[0]) // 2, (32 - scaled[1]) // 2
    inner = array[top : top + scaled[1], left : left + scaled[0]]
    # Both round to whole levels in their own way.
    np.testing.assert_allclose(inner, interpolate(pixels, scaled), atol=1)
