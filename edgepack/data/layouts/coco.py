"""Detection data of COCO: one JSON with images, annotations and categories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.data.layouts.class_names import Classes, match_names, refuse_repeated
from edgepack.data.layouts.picture_set import Boxes, PictureSet, is_file, make_boxes
from edgepack.errors import DataError, EdgepackError
from edgepack.runtime.plain import read_plain
from edgepack.runtime.strict_json import Reader

# Largest coordinate.
LARGEST = 1e9
KEYS = frozenset(("images", "annotations", "categories"))


def read_document(path: Path) -> object:
    """Return a JSON document. Raises DataError `coco-invalid`."""
    try:
        return json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(path, f"{type(error).__name__}: {error}") from error


def is_coco(document: object) -> bool:
    """Return True for a document with COCO's keys."""
    return isinstance(document, dict) and document.keys() >= KEYS


def read_coco(path: Path, document: object, classes: Classes) -> PictureSet:
    """Return the pictures and boxes of a COCO document.

    Categories become classes 0, 1, ... in the order of their ids, or the model's classes of the
    same names where these are known. Regions of crowds are left out.

    Args:
        path: the file of the document.
        document: its content.
        classes: of the model.

    Raises DataError `coco-invalid`, `pictures-missing`, `classes-repeated` or `classes-differ`.
    """

    def fault(where: str, why: str) -> EdgepackError:
        return _invalid(path, f"{where}: {why}".removeprefix(": "))

    reader = Reader(document, "", fault)
    if not is_coco(document):
        raise fault("", f"it needs the keys {', '.join(sorted(KEYS))}")
    index_of, class_names = _read_categories(reader, classes, path)
    images = _read_images(reader)
    folder = _find_folder(path, [name for name, _ in images.values()])
    rows: dict[int, list[list[float]]] = {image: [] for image in images}
    crowds = 0
    for entry in reader.each("annotations", lambda item: item):
        if entry.value.get("iscrowd") if isinstance(entry.value, dict) else False:
            crowds += 1
            continue
        image, row = _read_annotation(entry, index_of)
        if image not in rows:
            raise entry.fault(f"there is no image with the id {image}")
        rows[image].append(row)
    boxes: list[Boxes] = []
    dropped = 0
    # Pictures without annotations keep an empty list: what is found in them is a false alarm.
    for image, (name, size) in images.items():
        entries, number = make_boxes(
            rows[image], relative=False, size=size, origin=f"{path.name}: {name}"
        )
        boxes.append(entries)
        dropped += number
    notes = []
    if crowds:
        notes.append(f"{crowds} crowd region(s) are left out")
    if dropped:
        notes.append(f"{dropped} box(es) without an area or repeated are left out")
    paths = tuple(folder / name for name, _ in images.values())
    return PictureSet(
        "COCO", folder, paths, boxes=tuple(boxes), class_names=class_names, notes=tuple(notes)
    )


def _invalid(path: Path, why: str) -> DataError:
    return DataError(
        "coco-invalid",
        f"{path} is not a valid COCO file",
        why=why,
        hint='it has "images" (id, file_name, width, height), "annotations" (image_id, '
        'category_id, bbox) and "categories" (id, name)',
    )


def _read_categories(
    reader: Reader, classes: Classes, path: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the index of each category by its id, and the names of the classes."""
    names: dict[int, str] = {}
    for entry in reader.each("categories", lambda item: item):
        number = entry.get("id", int)
        if number in names:
            raise entry.fault(f"the id {number} is repeated")
        names[number] = entry.get("name", str)
    # COCO's 80 categories have ids from 1 to 90, with gaps: id 13, "stop sign", is class 11.
    ids = sorted(names)
    ordered = tuple(names[number] for number in ids)
    refuse_repeated(ordered, str(path))
    if classes.names:
        indices = match_names(ordered, classes, str(path))
        return dict(zip(ids, indices.tolist(), strict=True)), classes.names
    return {number: index for index, number in enumerate(ids)}, ordered


def _read_images(reader: Reader) -> dict[int, tuple[str, tuple[int, int] | None]]:
    """Return the name and the size (width, height) of each image by its id."""
    images: dict[int, tuple[str, tuple[int, int] | None]] = {}
    names: set[str] = set()
    for entry in reader.each("images", lambda item: item):
        number, name = entry.get("id", int), entry.get("file_name", str)
        if number in images or name in names:
            raise entry.fault(f"the image {name!r} of id {number} is repeated")
        # A file that others wrote must not put pictures from elsewhere into the bundle.
        if Path(name).is_absolute() or ".." in name.split("/"):
            raise entry.fault(f"the image {name!r} is not below the folder of the pictures")
        names.add(name)
        size = None
        if "width" in entry.value and "height" in entry.value:
            size = (entry.get("width", int), entry.get("height", int))
        images[number] = (name, size)
    if not images:
        raise reader.fault("it has no images")
    return images


def _read_annotation(entry: Reader, index_of: Mapping[int, int]) -> tuple[int, list[float]]:
    """Return the image of an annotation, and its row (class, left, top, right, bottom)."""
    category = entry.get("category_id", int)
    if category not in index_of:
        raise entry.fault(f"there is no category with the id {category}")
    box = entry.each("bbox", _read_number)
    if len(box) != 4 or box[2] < 0 or box[3] < 0:
        raise entry.fault(f"bbox is {list(box)}, not left, top, width and height")
    # [10, 20, 30, 40] becomes the corners (10, 20) and (40, 60).
    left, top, width, height = box
    return entry.get("image_id", int), [
        index_of[category],
        left,
        top,
        left + width,
        top + height,
    ]


def _read_number(reader: Reader) -> float:
    # The comparison is False for NaN, too.
    if type(reader.value) not in (int, float) or not abs(reader.value) <= LARGEST:
        raise reader.fault(f"it is not a number up to {LARGEST:g}")
    return float(reader.value)


def _find_folder(path: Path, names: Sequence[str]) -> Path:
    """Return the folder of the pictures, which is beside the file or beside its folder.

    Raises DataError `pictures-missing`.
    """
    # coco/annotations/instances_val2017.json has its pictures in coco/val2017.
    base = path.parent
    split = path.stem.removeprefix("instances_")
    candidates = [base, base / "images", base / split, base / "images" / split]
    if base.name == "annotations":
        base = base.parent
        candidates += [base / split, base / "images" / split, base / "images", base]
    fewest: list[str] = list(names)
    best = path.parent
    for folder in candidates:
        missing = [name for name in names if not is_file(folder / name)]
        if not missing:
            return folder
        if len(missing) < len(fewest):
            fewest, best = missing, folder
    raise DataError(
        "pictures-missing",
        f"{len(fewest)} of {len(names)} pictures of {path} do not exist, such as {fewest[0]}",
        why=f"it is not in {best}",
        hint="put the pictures beside the file, or into a folder images beside it",
    )
