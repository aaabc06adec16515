"""Conversion of a picture to an input, as a manifest declares it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of a decoded picture (8 bits per channel) to an array.

    Resize, crop, then `(pixel * scale - mean) / std`.

    Attributes:
        resize: length of the shorter side, or (height, width), in pixels; None keeps the size.
        crop: centre crop, a side or (height, width), in pixels; None keeps the entire picture.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        colour: "rgb", "bgr" or "grey".
        layout: "nchw" or "nhwc".
        scale: factor on the 0..255 pixel.
        mean: per channel, in units after `scale`.
        std: per channel, in units after `scale`.
    """

    # ImageNet, as torchvision's models expect it: resize=256, crop=224,
    # mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), and the defaults for the rest.
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    colour: str = "rgb"
    layout: str = "nchw"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
