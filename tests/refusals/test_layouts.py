"""Data sets of pictures that are broken, each refused with a code of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepack.data import Classes, lint, open_samples, read_class_file
from edgepack.errors import DataError, EdgepackError
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.tensor import Tensor
from edgepack.spec.pictures import parse_pictures
from support.build_cases import Home, ask
from support.picture_sets import coco_document, draw, write_class_folders, write_coco, write_yolo

IMAGE = (Tensor("image", "float32", ("batch", 3, 32, 32)),)
Change = Callable[[dict[str, Any]], None]


def read(path: Path, classes: Classes | None) -> None:
    samples = open_samples(str(path), IMAGE, preprocessing=Picture(letterbox=32), classes=classes)
    lint(None, samples, IMAGE)


def refused(path: Path, classes: Classes | None = None) -> DataError:
    """Return the error that opening and linting the samples ends with."""
    with pytest.raises(DataError) as caught:
        read(path, classes)
    return caught.value


def box(index: int, values: list[Any]) -> Change:
    return lambda document: document["annotations"][index].update(bbox=values)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (box(0, [60, 4, 16, 16]), "boxes-outside", "64 x 48 pixels"),
        (box(0, [8, 4, 70, 16]), "boxes-outside", "instances.json: a.png: box 1"),
        (box(1, [8, 4, -3, 16]), "coco-invalid", "annotations[1]: bbox"),
        (box(1, [8, 4, 3]), "coco-invalid", "annotations[1]: bbox"),
        (box(1, [8, 4, "3", 4]), "coco-invalid", "annotations[1].bbox[2]"),
        (box(1, [8, 4, float("nan"), 4]), "coco-invalid", "it is not a number up to"),
        (
            lambda d: d["annotations"][0].update(category_id=5),
            "coco-invalid",
            "no category",
        ),
        (
            lambda d: d["annotations"][0].update(image_id=5),
            "coco-invalid",
            "no image with",
        ),
        (lambda d: d["annotations"][0].pop("bbox"), "coco-invalid", "'bbox' is missing"),
        (lambda d: d["categories"][0].update(name="disc"), "classes-repeated", "'disc'"),
        (lambda d: d["categories"][0].update(id=3), "coco-invalid", "the id 3 is repeated"),
        (lambda d: d["images"][0].update(file_name="b.png"), "coco-invalid", "is repeated"),
        (lambda d: d["images"][0].update(file_name="x.png"), "pictures-missing", "such as x.png"),
        (lambda d: d["images"][0].update(width=48, height=64), "boxes-size", "upright picture"),
        (lambda d: d["images"].clear(), "coco-invalid", "it has no images"),
        (lambda d: d.pop("categories"), "coco-invalid", "annotations, categories, images"),
    ],
)
def test_coco(tmp_path: Path, change: Change, code: str, text: str) -> None:
    document = json.loads(json.dumps(coco_document()))
    change(document)
    error = refused(write_coco(tmp_path, document))
    assert error.code == code
    assert text in f"{error.what} {error.why}"


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    path.write_text('{"images": [')
    assert refused(path).code == "coco-invalid"
    # Nor do the pictures of its folder lose their boxes without a word.
    assert refused(tmp_path).code == "coco-invalid"


def test_two_files_of_annotations_for_one_role(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    (tmp_path / "other.json").write_text(path.read_text())
    assert refused(tmp_path).code == "annotations-ambiguous"


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("2 0.5 0.5 0.1 0.1", "classes-range", "line 1: 2; the 2 classes count from 0"),
        ("-1 0.5 0.5 0.1 0.1", "classes-range", "line 1: -1"),
        ("0.5 0.5 0.5 0.1 0.1", "classes-range", "line 1: 0.5"),
        ("0 320 240 100 100", "yolo-boxes", "is not within 0 and 1"),
        ("0 0.9 0.5 0.8 0.1", "boxes-outside", "box 1"),
        ("0 nan 0.5 0.8 0.1", "yolo-boxes", "is not within"),
        ("0 0.5 0.5 0.1", "yolo-boxes", "line 1 has 4 numbers"),
        ("disc 0.5 0.5 0.1 0.1", "yolo-boxes", "could not convert"),
    ],
)
def test_boxes_of_yolo(tmp_path: Path, line: str, code: str, text: str) -> None:
    path = write_yolo(tmp_path)
    (tmp_path / "labels/val/b.txt").write_text(line + "\n")
    error = refused(path)
    assert error.code == code
    assert text in f"{error.what} {error.why}"


@pytest.mark.parametrize(
    ("text", "code", "fault"),
    [
        ("names: [a\n  b: : c", "yolo-invalid", "expected"),
        ("- a\n- b\n", "yolo-invalid", "not a table"),
        ("val: images/val\n", "yolo-invalid", "names is not a list"),
        ("val: images/val\nnames: {0: a, 2: b}\n", "yolo-invalid", "not 0, 1"),
        ("val: images/val\nnames: [a, a]\n", "classes-repeated", "could be either"),
        ("val: images/val\nnames: [a, b]\nnc: 3\n", "yolo-invalid", "nc is 3"),
        ("train: images/train\nnames: [a, b]\n", "yolo-invalid", "none of the keys val"),
        ("val: images/nothere\nnames: [a, b]\n", "pictures-missing", "images/nothere"),
        ("val: labels\nnames: [a, b]\n", "pictures-missing", "holds none"),
        ("val: list.txt\nnames: [a, b]\n", "pictures-missing", "gone.png does not exist"),
        ("!!python/object/apply:os.getcwd []", "yolo-invalid", "could not determine"),
    ],
)
def test_data_yaml(tmp_path: Path, text: str, code: str, fault: str) -> None:
    path = write_yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/val/b.png\nimages/val/gone.png\n")
    path.write_text(text)
    error = refused(path)
    assert error.code == code
    assert fault in f"{error.what} {error.why}"


def test_pictures_without_any_boxes(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    (tmp_path / "labels/val/b.txt").unlink()
    assert refused(path).code == "yolo-boxes"


def test_images_and_labels_without_names(tmp_path: Path) -> None:
    write_yolo(tmp_path).unlink()
    error = refused(tmp_path)
    assert error.code == "yolo-invalid"
    assert "classes.txt" in error.why


def test_a_picture_that_exif_turns_against_its_boxes(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(tmp_path / "a.png") as picture:
        picture.copy().save(tmp_path / "a.png", exif=exif)
    error = refused(path)
    assert error.code == "boxes-size"
    assert "EXIF" in error.hint


@pytest.mark.parametrize("layout", ["folders", "csv", "coco", "yolo"])
def test_classes_that_the_model_does_not_have(tmp_path: Path, layout: str) -> None:
    classes = Classes(("circle", "square"), "id2label in config.json")
    path = tmp_path
    if layout == "folders":
        write_class_folders(tmp_path, ["disc", "square"])
    elif layout == "csv":
        draw(tmp_path / "a.png", ())
        (tmp_path / "labels.csv").write_text("file,label\na.png,disc\n")
    else:
        path = {"coco": write_coco, "yolo": write_yolo}[layout](tmp_path)
    error = refused(path, classes)
    assert error.code == "classes-differ"
    assert "disc" in error.why
    assert "circle" in error.why
    assert "id2label in config.json" in error.what


@pytest.mark.parametrize(
    ("labels", "code"),
    [(("1", "cat"), "pictures-labels"), (("0", "3"), "classes-range")],
)
def test_labels_of_a_table(tmp_path: Path, labels: tuple[str, str], code: str) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, ())
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{labels[0]}\nb.png,{labels[1]}\n")
    names = ("x", "y", "z") if code == "classes-range" else ()
    assert refused(tmp_path, Classes(names, "the model")).code == code


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "classes-file"), ("a\n\nb\n", "classes-file"), ("a\nb\na\n", "classes-repeated")],
)
def test_files_of_classes(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_class_file(tmp_path / "classes.txt")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("normalize=imagenet", "pictures-incomplete"),
        ("size=224", "pictures-incomplete"),
        ("size=224,mean=[0.5]", "pictures-incomplete"),
        ("size=224,normalize=none,std=[1]", "pictures-incomplete"),
        ("size=224,crop=224,normalize=none", "pictures-incomplete"),
        ("letterbox=640,resize=640,normalize=none", "pictures-incomplete"),
        ("size=224,size=225,normalize=none", "pictures-syntax"),
        ("size", "pictures-syntax"),
        ("size=-1,normalize=none", "manifest-invalid"),
        ("size=224,normalize=image-net", "manifest-invalid"),
        ("sizes=224,normalize=none", "manifest-invalid"),
    ],
)
def test_preprocessing_in_one_line(text: str, code: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        parse_pictures(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "size=28 normalize=0.5",
            "pictures.size: '28 normalize=0.5' is not a whole number or list",
        ),
        ("size=[28,0],normalize=0.5", "pictures.size[1]: 0 is less than the minimum of 1"),
        ("size=28,mean=[],std=1", "pictures.mean: [] should be non-empty"),
        ("size=28,mean=[0,x],std=1", "pictures.mean: '[0,x]' is not a number or list"),
        ('size=28,mean=[0,"x"],std=1', "pictures.mean[1]: 'x' is not of type 'number'"),
    ],
)
def test_a_value_of_several_forms_is_at_fault_in_the_form_that_was_meant(
    text: str, words: str
) -> None:
    with pytest.raises(EdgepackError) as caught:
        parse_pictures(text)
    assert words in caught.value.why


def test_a_line_states_what_a_table_does() -> None:
    assert parse_pictures("resize=256, crop=[224,192], normalize=0.5, colour=grey") == {
        "resize": 256,
        "crop": (224, 192),
        "mean": (0.5,),
        "std": (0.5,),
        "colour": "grey",
    }
    # Blue is first in bgr, and so are its mean and std.
    # One number serves all channels.
    assert parse_pictures("size=8,mean=0.286,std=[0.353]") == parse_pictures(
        "size=8,mean=[0.286],std=0.353"
    )
    options = parse_pictures("size=8,normalize=imagenet,colour=bgr")
    assert options["mean"] == (0.406, 0.456, 0.485)
    assert options["resize"] == (8, 8)


def write_grey(folder: Path, names: list[str]) -> Path:
    """Write pictures of 16 x 16 pixels in one folder for each class."""
    for position, name in enumerate(names):
        for number in range(8):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([position, number]).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(path)
    return folder


GREY = "size=16,normalize=none,colour=grey"


def test_fewer_class_folders_than_the_model_has_classes(home: Home, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "photos", ["cat", "cow", "dog"])
    command = home.build("tiny.onnx", "--pictures", GREY, calibration="")
    answer = ask(*command, "--samples", str(folder), "--split", "0.5")
    assert (answer.status, answer.code) == (2, "class-count")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--samples", "{}"), "samples-split"),
        (("--samples", "{}", "--calibration", "{}"), "samples-twice"),
        (("--calibration", "{}", "--split", "0.5"), "split-alone"),
        (("--calibration", "{}/val", "--evaluation", "{}/test"), "classes-differ"),
        (("--samples", "{}/parts", "--split", "0.5"), "samples-split"),
    ],
)
def test_sources_that_contradict_each_other(
    home: Home, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    write_grey(tmp_path / "val", ["cat", "cow", "dog"])
    write_grey(tmp_path / "test", ["cat", "dog"])
    for part in ("train", "val"):
        write_grey(tmp_path / "parts" / part, ["cat", "dog"])
    words = [option.format(tmp_path) for option in options]
    command = home.build("tiny.onnx", "--pictures", GREY, calibration="")
    answer = ask(*command, *words)
    assert (answer.status, answer.code) == (2, code)
    # A dry run reads no pictures, and finds the others.
    if code != "classes-differ":
        assert ask(*command, *words, "--dry-run").code == code


def test_a_dry_run_shows_the_split(home: Home, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "photos", ["cat", "dog"])
    command = home.build("tiny.onnx", "--pictures", GREY, calibration="")
    answer = ask(*command, "--samples", str(folder), "--split", "0.25", "--dry-run")
    assert (answer.status, answer.document["split"]) == (0, 0.25)
