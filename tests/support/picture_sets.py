"""Small data sets of pictures in the layouts that people have them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# Corners (left, top, right, bottom) of the shapes, all in pictures of 64 x 48 pixels.
SIZE = (64, 48)
SHAPES = {
    "a": ((0, (8, 4, 24, 20)), (1, (30, 10, 62, 46))),
    "b": ((1, (2, 2, 12, 40)),),
    "c": (),
}
NAMES = ("disc", "square")


def draw(
    path: Path, shapes: Sequence[tuple[int, tuple[int, int, int, int]]], seed: int = 0
) -> None:
    """Draw discs and squares on noise, so that no two pictures are the same."""
    noise = np.random.default_rng([seed, len(path.name), *path.name.encode()])
    pixels = noise.integers(0, 60, (SIZE[1], SIZE[0], 3), np.uint8)
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for shape, (left, top, right, bottom) in shapes:
        corners = (left, top, right - 1, bottom - 1)
        if NAMES[shape] == "disc":
            pen.ellipse(corners, fill=(250, 40, 40))
        else:
            pen.rectangle(corners, fill=(40, 40, 250))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_class_folders(folder: Path, names: Sequence[str], count: int = 2) -> Path:
    """Write pictures in one folder for each class."""
    for position, name in enumerate(names):
        for number in range(count):
            draw(folder / name / f"{number}.png", SHAPES["a"], seed=position)
    return folder


def coco_document() -> dict[str, list[dict[str, object]]]:
    """Return the annotations of SHAPES, with ids that leave gaps."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, (name, shapes) in enumerate(SHAPES.items(), 7):
        images.append({"id": number, "file_name": f"{name}.png", "width": 64, "height": 48})
        for shape, (left, top, right, bottom) in shapes:
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": (3, 18)[shape],
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
    categories: list[dict[str, object]] = [{"id": 18, "name": "square"}, {"id": 3, "name": "disc"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, document: object = None) -> Path:
    """Write the pictures of SHAPES with their annotations beside them."""
    for name, shapes in SHAPES.items():
        draw(folder / f"{name}.png", shapes)
    path = folder / "instances.json"
    path.write_text(json.dumps(document or coco_document()))
    return path


def write_yolo(folder: Path) -> Path:
    """Write the pictures of SHAPES for YOLO: `a` and `c` for training, `b` for validation."""
    width, height = SIZE
    for name, shapes in SHAPES.items():
        split = "val" if name == "b" else "train"
        draw(folder / "images" / split / f"{name}.png", shapes)
        lines = []
        for shape, (left, top, right, bottom) in shapes:
            x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
            lines.append(f"{shape} {x} {y} {(right - left) / width} {(bottom - top) / height}\n")
        file = folder / "labels" / split / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Exports leave the file of a picture without boxes away.
        if lines:
            file.write_text("".join(lines))
    path = folder / "data.yaml"
    path.write_text(
        "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: disc\n  1: square\n"
    )
    return path
