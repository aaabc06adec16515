"""Preprocessing of pictures as users state it: a table [pictures], or `--pictures` in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypedDict, cast

from edgepack.errors import SpecError
from edgepack.spec import toml_reader
from edgepack.spec.documents import PicturesTable

# Mean and standard deviation per channel, red first, of pixels that are scaled to 0..1.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
SIZE_KEYS = ("size", "resize", "crop", "letterbox")
OPTION = "--pictures"
EXAMPLE = "resize=256,crop=224,normalize=imagenet"


class PictureOptions(TypedDict, total=False):
    """Keyword arguments of Picture, by their names."""

    resize: int | tuple[int, int]
    crop: int | tuple[int, int]
    letterbox: int | tuple[int, int]
    pad: int
    interpolation: str
    antialias: bool
    colour: str
    layout: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def parse_pictures(text: str) -> PictureOptions:
    """Parse a preprocessing in one line.

    "resize=256,crop=224,normalize=imagenet" is the table of those three keys; a list is written
    as mean=[0.5,0.5,0.5], one number for all channels as mean=0.5.

    Raises SpecError `pictures-syntax`, `manifest-invalid` or `pictures-incomplete`.
    """
    table: dict[str, object] = {}
    # A comma within brackets separates the numbers of a list.
    for entry in re.split(r",(?![^\[]*\])", text):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not key or key in table:
            raise SpecError(
                "pictures-syntax",
                f"--pictures {text} is not valid",
                why=f"{entry.strip()!r} is not key=value, or its key is repeated",
                hint=f"--pictures {EXAMPLE}",
            )
        table[key] = _parse_value(key, value)
    toml_reader.check({"schema": 1, "pictures": table}, "manifest", f"--pictures {text}")
    return read_pictures(cast("PicturesTable", table), OPTION)


def _parse_value(key: str, text: str) -> object:
    # 0.5 is a name of a normalization, and bilinear is no JSON.
    if key == "normalize":
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def read_pictures(table: PicturesTable, origin: str) -> PictureOptions:
    """Return the preprocessing of a table that its schema allows, with all values stated.

    Args:
        table: the table [pictures].
        origin: of the table, for messages: the path of the manifest, or the option.

    Raises SpecError `pictures-incomplete` if size, mean or std are not stated, or twice.
    """
    _require_complete(table, origin)
    options: dict[str, object] = {}
    for key, value in table.items():
        # Picture is frozen and hashable, so its fields are tuples: [0.5] becomes (0.5,).
        options[key] = tuple(value) if isinstance(value, list) else value
        if key in ("mean", "std") and not isinstance(value, list):
            options[key] = (value,)
    size = options.pop("size", None)
    if size is not None:
        options["resize"] = (size, size) if isinstance(size, int) else size
    name = options.pop("normalize", None)
    if name is not None:
        mean, std = NORMALIZATIONS[str(name)]
        # The numbers are in the order of the channels, which begin with blue in bgr.
        if table.get("colour") == "bgr":
            mean, std = mean[::-1], std[::-1]
        options["mean"], options["std"] = mean, std
    return cast("PictureOptions", options)


def _require_complete(table: Mapping[str, object], origin: str) -> None:
    """Refuse a table that leaves size, mean or std open, or states one of them twice.

    A default for any of these is wrong for most networks, and int8 hides it until the device.
    """
    missing = []
    lines = []
    if not any(key in table for key in SIZE_KEYS):
        missing.append("a size")
        lines.append("resize = 256\ncrop = 224")
    statistics = [key for key in ("mean", "std") if key in table]
    if "normalize" not in table and len(statistics) < 2:
        missing += [key for key in ("mean", "std") if key not in table]
        lines.append('normalize = "imagenet"   # or "0.5", "none", or mean and std')
    hint = "add what the training used, such as\n[pictures]\n" + "\n".join(lines)
    if origin == OPTION:
        hint = f"add what the training used, such as {OPTION} {EXAMPLE}"
    if missing:
        raise SpecError(
            "pictures-incomplete",
            f"{origin} does not state the preprocessing of pictures",
            why=f"it lacks {', '.join(missing)}, which have no default",
            hint=hint,
        )
    # `normalize` sets mean and std itself, so both together would leave one without effect.
    for first, others in (
        ("normalize", ("mean", "std")),
        ("size", ("resize", "crop", "letterbox")),
        ("letterbox", ("resize", "crop")),
    ):
        both = [key for key in others if key in table]
        if first in table and both:
            raise SpecError(
                "pictures-incomplete",
                f"{origin} states the preprocessing of pictures twice",
                why=f"{first} and {both[0]} exclude each other",
                hint=f"remove {first} or {both[0]}",
            )
