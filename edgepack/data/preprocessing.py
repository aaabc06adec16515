"""How a picture becomes an input, as a manifest states it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded picture (8 bits a channel) to an array: resize, crop, then
    `(pixel * scale - mean) / std`.

    Attributes:
        resize: length of the shorter side, or (height, width), in pixels; None leaves the size.
        crop: centre crop, a side or (height, width), in pixels; None takes the whole picture.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        colour: "rgb", "bgr" or "grey".
        layout: "nchw" or "nhwc".
        scale: factor on the 0..255 pixel.
        mean: per channel, in units after `scale`.
        std: per channel, in units after `scale`.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    colour: str = "rgb"
    layout: str = "nchw"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
