"""Detection data of YOLO: `data.yaml`, pictures below `images`, and their boxes in text files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.data.layouts.class_names import Classes, match_names, read_class_file, refuse_repeated
from edgepack.data.layouts.picture_set import (
    OVERHANG,
    SUFFIXES,
    Boxes,
    PictureSet,
    find_pictures,
    is_file,
    is_folder,
    make_boxes,
)
from edgepack.errors import DataError, missing_package
from edgepack.runtime.plain import read_plain

if TYPE_CHECKING:
    import yaml

# Keys of the pictures for each role, in the order in which they are looked for.
SPLITS = {
    "calibration": ("train", "val"),
    "evaluation": ("val", "valid", "test"),
    "training": ("train",),
}
_SPLIT_KEYS = frozenset(chain.from_iterable(SPLITS.values()))
# Names of the classes in a data set without `data.yaml`.
CLASS_FILE = "classes.txt"


def read_yaml(path: Path) -> object:
    """Return a YAML document. Raises DataError `yolo-invalid`, HostError `package-missing`."""
    try:
        import yaml
    except ImportError as error:
        raise missing_package("pyyaml", "pictures", f"Reading {path.name}") from error
    try:
        return yaml.load(read_plain(path), Loader=_make_loader())  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise _invalid(path, " ".join(str(error).split())) from error


def _make_loader() -> type[yaml.SafeLoader]:
    """Return PyYAML's safe loader, which refuses aliases: ten lines can stand for a billion."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"it has the alias *{self.peek_event().anchor}")
            return super().compose_node(parent, index)

    return Loader


def is_yolo(document: object) -> bool:
    """Return True for a document with YOLO's keys."""
    if not isinstance(document, dict) or "names" not in document:
        return False
    return not _SPLIT_KEYS.isdisjoint(document)


def is_divided(document: object) -> bool:
    """Return True if a document names different pictures for calibration and evaluation."""
    if not isinstance(document, dict):
        return False
    # coco128.yaml evaluates on the pictures that it trains on.
    calibration = _find_key(document, "calibration")
    evaluation = _find_key(document, "evaluation")
    if calibration is None or evaluation is None:
        return False
    return bool(document[calibration] != document[evaluation])


def describe_folder(folder: Path) -> dict[str, object] | None:
    """Return the document that a folder with `images` and `labels` lacks; None for other folders.

    Raises DataError `yolo-invalid` if nothing names the classes.
    """
    if not (folder / "images").is_dir() or not (folder / "labels").is_dir():
        return None
    document: dict[str, object] = {"train": "images", "val": "images"}
    present = [key for key in sorted(_SPLIT_KEYS) if (folder / "images" / key).is_dir()]
    if present:
        document = {key: f"images/{key}" for key in present}
    # Labelling tools write the names beside the boxes or beside both folders.
    for file in (folder / CLASS_FILE, folder / "labels" / CLASS_FILE):
        if file.is_file():
            return {**document, "names": list(read_class_file(file))}
    raise _invalid(folder, f"it has neither a data.yaml nor a {CLASS_FILE} with the classes")


def _find_key(document: Mapping[str, object], role: str) -> str | None:
    """Return the key of the pictures for a role; None if it has none."""
    for key in SPLITS[role]:
        if document.get(key):
            return key
    return None


def read_yolo(path: Path, document: object, role: str, classes: Classes) -> PictureSet:
    """Return the pictures and boxes of one role of a `data.yaml`.

    Args:
        path: the file of the document.
        document: its content.
        role: "calibration" and "training" read the key train, "evaluation" val.
        classes: of the model.

    Raises DataError `yolo-invalid`, `yolo-boxes`, `pictures-missing`, `classes-range`,
    `classes-repeated` or `classes-differ`.
    """
    if not isinstance(document, dict):
        raise _invalid(path, "it is not a table of keys")
    names = _read_names(path, document)
    key = _find_key(document, role)
    if key is None:
        raise _invalid(path, f"it has none of the keys {', '.join(SPLITS[role])} for {role}")
    pictures = _list_pictures(path, document, key)
    # Rows of a pose are a box and key points; rows of a segmentation are a polygon.
    pose = "kpt_shape" in document
    indices = list(range(len(names)))
    class_names = names
    if classes.names:
        indices = match_names(names, classes, str(path)).tolist()
        class_names = classes.names
    boxes: list[Boxes] = []
    absent = dropped = 0
    for picture in pictures:
        file = _label_file(picture)
        rows: list[list[float]] = []
        if file.is_file():
            rows = _read_rows(file, indices, pose)
        else:
            absent += 1
        entries, number = make_boxes(rows, relative=True, size=None, origin=str(file))
        boxes.append(entries)
        dropped += number
    if absent == len(pictures):
        raise DataError(
            "yolo-boxes",
            f"no picture of {key} in {path} has a file of boxes",
            why=f"{_label_file(pictures[0])} does not exist",
            hint="boxes of images/val/a.jpg are in labels/val/a.txt",
        )
    notes = []
    if absent:
        notes.append(f"{absent} picture(s) without a file of boxes count as empty")
    if dropped:
        notes.append(f"{dropped} box(es) without an area or repeated are left out")
    return PictureSet(
        f"YOLO, {key}",
        path.parent,
        tuple(pictures),
        boxes=tuple(boxes),
        class_names=class_names,
        notes=tuple(notes),
    )


def _invalid(path: Path, why: str) -> DataError:
    return DataError(
        "yolo-invalid",
        f"{path} does not describe a data set of YOLO",
        why=why,
        hint="it has the keys path, train and val (folders of pictures) and names",
    )


def _read_names(path: Path, document: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the classes: a list, or a table from index to name."""
    names = document.get("names")
    if isinstance(names, dict):
        # {0: "cat", 1: "dog"}: a gap would leave an index without a name.
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise _invalid(path, f"the indices in names are {list(names)}, not 0, 1, ...")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise _invalid(path, "names is not a list of classes")
    # YAML reads an unquoted `no` or `1` as another type than text.
    texts = [str(name) for name in names]
    refuse_repeated(texts, str(path))
    count = document.get("nc", len(texts))
    if count != len(texts):
        raise _invalid(path, f"nc is {count}, and names has {len(texts)} classes")
    return tuple(texts)


def _list_pictures(path: Path, document: Mapping[str, object], key: str) -> list[Path]:
    """Return the pictures of a split: of a folder, of a list in a text file, or of several."""
    value = document[key]
    entries = value if isinstance(value, list) else [value]
    root = path.parent / str(document.get("path") or "")
    pictures: list[Path] = []
    for entry in entries:
        source = _locate(path, root, str(entry))
        if source.is_dir():
            pictures += find_pictures(source)
        elif source.suffix == ".txt":
            pictures += _read_list(source)
        else:
            # The lines of any other file would be shown as paths that do not exist.
            raise _invalid(path, f"{key} names {source}, neither a folder nor a list in a .txt")
    if not pictures:
        raise DataError(
            "pictures-missing",
            f"there are no pictures for {key} in {path}",
            why=f"{', '.join(map(str, entries))} holds none",
            hint=f"pictures are recognised by their suffix: {', '.join(sorted(SUFFIXES))}",
        )
    return pictures


def _locate(path: Path, root: Path, entry: str) -> Path:
    """Return the folder or list that a key names, relative to `path:` or to the file itself."""
    # Exports often state a path of the machine that wrote them, or "../train/images" for
    # "train/images": the file's own folder is the next guess.
    below = entry
    while below.startswith("../"):
        below = below[3:]
    for candidate in (root / entry, path.parent / entry, path.parent / below):
        if is_file(candidate) or is_folder(candidate):
            return candidate
    raise DataError(
        "pictures-missing",
        f"the pictures of {path} do not exist",
        why=f"{root / entry} does not exist",
        hint=f"correct `path`, which is {root} at present",
    )


def _read_list(source: Path) -> list[Path]:
    """Return the pictures that a text file lists, relative to its folder."""
    try:
        lines = read_plain(source).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(source, f"it is not a list of pictures: {error}") from error
    pictures = [source.parent / line.strip() for line in lines if line.strip()]
    for picture in pictures:
        if not is_file(picture):
            raise DataError(
                "pictures-missing",
                f"a picture of {source} does not exist",
                why=f"{picture} does not exist",
                hint="write one path for each line, relative to the list",
            )
    return pictures


def _label_file(picture: Path) -> Path:
    """Return the file of a picture's boxes: data/labels/val/a.txt for data/images/val/a.jpg."""
    parts = list(picture.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_rows(file: Path, indices: Sequence[int], pose: bool) -> list[list[float]]:
    """Return the rows (class, left, top, right, bottom) of a file, in shares of the picture.

    Raises DataError `yolo-boxes` or `classes-range`.
    """
    try:
        lines = read_plain(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(file, str(error)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields]
        except ValueError as error:
            raise _fault(file, f"line {number}: {error}") from error
        # `1 0.5 0.5 0.2 0.4` is class 1; a pose has key points behind the four numbers of its box.
        index, *sides = values
        if not 0 <= index < len(indices) or index != int(index):
            raise DataError(
                "classes-range",
                f"{file} has a class that names lacks",
                why=f"line {number}: {index:g}; the {len(indices)} classes count from 0",
                hint="the first class has the index 0",
            )
        if pose:
            sides = sides[:4]
        if not all(math.isfinite(side) and -OVERHANG <= side <= 1 + OVERHANG for side in sides):
            raise _fault(file, f"line {number}: {line.strip()!r} is not within 0 and 1")
        rows.append([indices[int(index)], *_read_box(file, number, sides)])
    return rows


def _read_box(file: Path, number: int, sides: Sequence[float]) -> tuple[float, ...]:
    """Return left, top, right and bottom of a box, or around a polygon."""
    # "0.5 0.5 0.2 0.4" is a centre with width and height; more numbers are the points of a polygon.
    if len(sides) == 4:
        x, y, width, height = sides
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(sides) >= 6 and len(sides) % 2 == 0:
        xs, ys = sides[::2], sides[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    raise _fault(file, f"line {number} has {len(sides) + 1} numbers, not a class and a box")


def _fault(file: Path, why: str) -> DataError:
    return DataError(
        "yolo-boxes",
        f"{file} is not a list of boxes",
        why=why,
        hint="each line is `class x y width height`: the centre and the sides as shares of the "
        "picture, from 0 to 1",
    )
