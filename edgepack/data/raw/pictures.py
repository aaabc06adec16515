"""Samples from pictures, converted by the code that devices run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from edgepack.data.fit import check_dtype, check_feed
from edgepack.data.layouts.picture_set import NO_BOX, PictureSet
from edgepack.data.raw.decoded import DecodedPictures
from edgepack.data.raw.prepare import host_errors, read_file
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.errors import DataError
from edgepack.runtime.preprocess.picture import Picture, read_size
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor

# Label of the picture at a position, from its contents.
Labeller = Callable[[int, bytes], "np.ndarray | None"]


def open_pictures(
    pictures: PictureSet,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    *,
    origin: str,
) -> SampleStream:
    """Open pictures as samples, with their labels.

    A class is one int64 for each picture. Boxes are float32 (N, M, 5): rows of class, left, top,
    right and bottom in pixels of the input, M of the picture with the most boxes; unused rows have
    the class -1.

    Args:
        pictures: of a data set.
        inputs: the model's inputs: one, of rank 4.
        preprocessing: conversion of a picture to that input.
        origin: description of the source for the report.

    Raises:
        DataError: the model does not take one picture, or the preprocessing is missing or
            invalid.
    """
    _require_picture_input(inputs)
    tensor = inputs[0]
    if not isinstance(preprocessing, Picture):
        raise _missing_preprocessing(pictures, tensor)
    picture = replace(preprocessing, input=tensor.name, dtype=_pixel_type(tensor))
    _check(picture)
    label = _make_labeller(pictures, picture)
    decoded = DecodedPictures()

    def pieces(size: int) -> Iterator[Piece]:
        for index, path in enumerate(pictures.paths):
            data = read_file(path)
            pixels = decoded.get(index, data)
            if pixels is None:
                with host_errors(picture):
                    pixels = picture.to_pixels(data, str(path))
                decoded.put(index, data, pixels)
            feed = picture.to_feed(pixels)
            where = pictures.name(index)
            array = feed[tensor.name]
            check_dtype(array.dtype, tensor, where)
            try:
                check_feed({tensor.name: array.shape}, inputs, where, any_batch=True)
            except DataError as error:
                hint = _suggest_settings(picture, array.shape[1:], tensor) or error.hint
                raise DataError(error.code, error.what, why=error.why, hint=hint) from error
            yield Piece(feed, label(index, data), 1, divisible=True, raw=(data,))

    return SampleStream(
        origin,
        pieces,
        exact_batch(inputs, origin),
        notes=pictures.notes,
        preprocessing=picture,
        class_names=pictures.class_names,
    )


def describe_picture(picture: Picture) -> str:
    """Describe a preprocessing: `resize 256, crop 224, bilinear, rgb, scale 0.00392, mean ...`."""
    parts = []
    for name in ("resize", "crop", "letterbox"):
        size = getattr(picture, name)
        if size is not None:
            parts.append(f"{name} {size if isinstance(size, int) else 'x'.join(map(str, size))}")
    if picture.letterbox is not None:
        parts.append(f"pad {picture.pad}")
    if not picture.antialias:
        parts.append("no antialias")
    parts += [picture.interpolation, picture.colour, picture.layout, f"scale {picture.scale:.6g}"]
    for name in ("mean", "std"):
        parts.append(f"{name} {' '.join(f'{value:g}' for value in getattr(picture, name))}")
    return ", ".join(parts)


def _require_picture_input(inputs: tuple[Tensor, ...]) -> None:
    if len(inputs) != 1 or inputs[0].rank != 4:
        raise DataError(
            "pictures-inputs",
            "a folder of pictures feeds a model with one input of four axes",
            why=f"the model's inputs: {', '.join(map(str, inputs))}",
            hint="write the samples as arrays: an .npz with one array per input",
        )


def _missing_preprocessing(pictures: PictureSet, tensor: Tensor) -> DataError:
    """Return the error that shows the settings to add, with the size of the model's input."""
    # (batch, 3, 224, 224) and (batch, 224, 224, 3) take pictures of 224 x 224.
    layout, channels, sides = _read_shape(tensor)
    settings = {"size": _format_size(sides or (224, 224))}
    if channels == 1:
        settings["colour"] = "grey"
    if layout != "nchw":
        settings["layout"] = layout
    # ImageNet's mean and std have three channels.
    settings["normalize"] = "0.5" if channels == 1 else "imagenet"
    option = ",".join(f"{key}={value}" for key, value in settings.items())
    table = "\n".join(_format_entry(key, value) for key, value in settings.items())
    return DataError(
        "pictures-preprocessing-missing",
        f"there is no preprocessing for the pictures in {pictures.folder}",
        why="size, colour order, scale, mean and std must match the training",
        hint=f"state it by an option, with the training's mean and std: --pictures {option}\n"
        f"or in the manifest:\n[pictures]\n{table}",
    )


def _read_shape(tensor: Tensor) -> tuple[str, int, tuple[int, ...]]:
    """Return layout, channels and (height, width) of a picture's input; () if they vary."""
    # (batch, 28, 28, 1) is "nhwc", 1, (28, 28).
    first, last = tensor.shape[1], tensor.shape[3]
    layout, channels, sides = "nchw", first, tensor.shape[2:]
    if first not in (1, 3) and last in (1, 3):
        layout, channels, sides = "nhwc", last, tensor.shape[1:3]
    fixed = tuple(side for side in sides if isinstance(side, int))
    if len(fixed) < len(sides):
        fixed = ()
    return layout, channels if isinstance(channels, int) else 3, fixed


def _format_size(sides: tuple[int, ...]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else f"[{sides[0]},{sides[1]}]"


def _format_entry(key: str, value: str) -> str:
    """Format a setting as a line of TOML; sizes are numbers."""
    return f"{key} = {value}" if key == "size" else f'{key} = "{value}"'


def _suggest_settings(picture: Picture, shape: tuple[int, ...], tensor: Tensor) -> str:
    """Suggest the settings that fit an input; "" if none of them is at fault.

    Args:
        picture: the preprocessing.
        shape: of an array that it made, without the batch axis.
        tensor: the input.
    """
    # Pictures of (3, 32, 32) for an input of (batch, 1, 28, 28): size=28,colour=grey.
    layout, channels, sides = _read_shape(tensor)
    height_width = shape[1:] if picture.layout == "nchw" else shape[:2]
    settings = []
    if sides and sides != height_width:
        key = "crop"
        if picture.letterbox is not None:
            key = "letterbox"
        elif picture.crop is None and isinstance(picture.resize, tuple):
            key = "size"
        settings.append(f"{key}={_format_size(sides)}")
    if (channels == 1) != (picture.colour == "grey"):
        settings.append(f"colour={'grey' if channels == 1 else 'rgb'}")
    if layout != picture.layout:
        settings.append(f"layout={layout}")
    if not settings:
        return ""
    return f"for this model, state {','.join(settings)} in --pictures, or in [pictures]"


def _pixel_type(tensor: Tensor) -> str:
    """Return the element type of the arrays: raw pixels for a model that takes uint8."""
    if tensor.dtype == "uint8":
        return "uint8"
    return "float32"


def _check(picture: Picture) -> None:
    """Refuse a preprocessing that contradicts itself or the input's type."""
    fault = picture.find_fault()
    if fault is not None:
        why, hint = fault
        raise DataError(
            "pictures-preprocessing-invalid", "the preprocessing is not valid", why=why, hint=hint
        )


def _make_labeller(pictures: PictureSet, picture: Picture) -> Labeller:
    """Return the function that labels a picture."""
    classes, boxes = pictures.classes, pictures.boxes
    if boxes is not None:
        number = pictures.most_boxes()

        def label_boxes(index: int, data: bytes) -> np.ndarray:
            size = read_size(data)
            rows = boxes[index].in_pixels(size)
            return _fit_boxes(rows, size, picture, number, pictures.name(index))

        return label_boxes
    if classes is not None:
        return lambda index, _: classes[index : index + 1]
    return lambda _, __: None


def _fit_boxes(
    rows: np.ndarray, size: tuple[int, int], picture: Picture, number: int, name: str
) -> np.ndarray:
    """Return boxes in pixels of the input, float32 (1, number, 5)."""
    # A picture of 640 x 480 in a letterbox of 320 x 320 is 320 x 240 from (0, 40): the corner
    # (100, 60) becomes (50, 70).
    fit = picture.fit(size, name)
    scale = np.array([fit.width / size[0], fit.height / size[1]] * 2)
    corners = rows[:, 1:] * scale + np.array([fit.left, fit.top] * 2)
    corners = np.clip(corners, 0, [fit.columns, fit.rows] * 2)
    # A crop may leave nothing of a box.
    solid = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    count = int(solid.sum())
    labels = np.zeros((1, number, 5), np.float32)
    labels[:, :, 0] = NO_BOX
    labels[0, :count, 0] = rows[solid, 0]
    labels[0, :count, 1:] = corners[solid]
    return labels
