"""Preprocessing of pictures from the `preprocessor_config.json` of a Hugging Face folder.

{"image_processor_type": "ViTImageProcessor", "do_resize": true, "resample": 2,
 "size": {"height": 224, "width": 224}, "do_rescale": true, "rescale_factor": 0.00392,
 "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.errors import SpecError
from edgepack.runtime.plain import read_plain
from edgepack.runtime.preprocess.picture import INTERPOLATION_CODES, Picture, Size, sides
from edgepack.source.huggingface_bounds import MAX_CONFIG

FILE = "preprocessor_config.json"
# Processors whose steps are those of `Picture`, in its order; transformers appends "Fast" or "Pil".
_TYPES = (
    *("BeitImageProcessor", "BitImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor"),
    *("DeiTImageProcessor", "EfficientNetImageProcessor", "MobileNetV1ImageProcessor"),
    *("MobileNetV2ImageProcessor", "MobileViTImageProcessor", "SiglipImageProcessor"),
    *("ViTImageProcessor",),
)
_UNDERSTOOD = {
    *("do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channel_order"),
    *("image_processor_type", "feature_extractor_type", "include_top"),
}
# Keys without an effect on the array of a picture in RGB.
_IGNORED = {
    *("do_convert_rgb", "do_reduce_labels", "processor_class", "return_tensors", "data_format"),
    *("input_data_format", "device", "default_to_square", "_processor_class", "size_divisor"),
    *("image_seq_length", "_valid_processor_keys", "disable_grouping"),
}
# Processors for which a bare number is the length of the shorter side.
_SHORTER = ("CLIPImageProcessor", "ConvNextImageProcessor")
# ConvNeXt crops below this side only.
_CROPPED_BELOW = 384


def read_picture(folder: Path) -> Picture | None:
    """Return the preprocessing that a folder describes; None if it has none for pictures.

    Raises SpecError `preprocessor-unsupported` for a step that edgepack does not have.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(read_plain(path, MAX_CONFIG))
        if not isinstance(config, dict):
            raise TypeError(f"it is a {type(config).__name__}, not an object")
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise _unsupported(path, f"it cannot be read: {error}") from error
    # Feature extractors of audio have neither key.
    if "image_mean" not in config and "image_processor_type" not in config:
        return None
    try:
        return _convert(config)
    except (ValueError, TypeError, KeyError) as error:
        raise _unsupported(path, str(error)) from error


def _unsupported(path: Path, why: str) -> SpecError:
    return SpecError(
        "preprocessor-unsupported",
        f"edgepack cannot take the preprocessing of pictures from {path.name}",
        why=f"{path}: {why}",
        hint="declare it in the manifest: [pictures]\nresize = 256\ncrop = 224\n"
        "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
    )


def _convert(config: Mapping[str, object]) -> Picture:
    """Return the preprocessing of a configuration. Raises ValueError for an unknown step."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    # Older folders name the feature extractor: "ViTFeatureExtractor".
    name = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if name not in _TYPES:
        raise ValueError(f"image_processor_type is {kind!r}")
    for key, value in config.items():
        # A step that is switched off needs no support.
        if key not in _UNDERSTOOD | _IGNORED and value not in (None, False):
            raise ValueError(f"{key} is {value!r}")
    resize, crop = _read_sizes(config, name)
    resample = config.get("resample", INTERPOLATION_CODES["bilinear"])
    interpolations = {code: name for name, code in INTERPOLATION_CODES.items()}
    if resize is not None and resample not in interpolations:
        raise ValueError(f"resample is {resample!r}")
    scale = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_rescale", "rescale_factor" in config):
        scale = _read_numbers(config, "rescale_factor")[0]
    # MobileViT takes pixels from 0 to 1, though its file has transformers' default mean.
    if config.get("do_normalize", name != "MobileViTImageProcessor"):
        mean, std = _read_numbers(config, "image_mean"), _read_numbers(config, "image_std")
        # The head of EfficientNet takes pixels that are divided by the deviation twice.
        if config.get("include_top"):
            std = tuple(value * value for value in std)
    return Picture(
        resize=resize,
        crop=crop,
        corner="down",
        interpolation=interpolations.get(int(str(resample)), "bilinear"),
        colour="bgr" if config.get("do_flip_channel_order") else "rgb",
        scale=scale,
        mean=mean,
        std=std,
    )


def _read_sizes(config: Mapping[str, object], name: str) -> tuple[Size | None, Size | None]:
    """Return resize and crop."""
    resize: Size | None = None
    crop: Size | None = None
    if config.get("do_resize", "size" in config):
        resize = _read_size(config, "size", square=name not in _SHORTER)
    if name == "ConvNextImageProcessor":
        if not isinstance(resize, int):
            raise ValueError(f"size is {config.get('size')!r}")
        # 224 with crop_pct 0.875 is resized to 256 and cropped; 384 is resized alone.
        if resize >= _CROPPED_BELOW:
            return (resize, resize), None
        (share,) = _read_numbers(config, "crop_pct")
        return int(resize / share), resize
    if config.get("do_center_crop", False):
        crop = _read_size(config, "crop_size", square=True)
        if isinstance(resize, int) and max(sides(crop)) > resize:
            raise ValueError(f"crop_size is {config['crop_size']!r}, which pads with black")
    return resize, crop


def _read_size(config: Mapping[str, object], key: str, *, square: bool) -> Size:
    """Return a size: `{"shortest_edge": 256}` is 256, `{"height": 224, "width": 192}` a pair.

    Args:
        config: the configuration.
        key: in it.
        square: a bare number is both sides, and not the shorter one.
    """
    size = config[key]
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, dict):
        stated = {name: side for name, side in size.items() if side is not None}
        shorter, height, width = map(stated.get, ("shortest_edge", "height", "width"))
        if len(stated) == 1 and isinstance(shorter, int):
            return shorter
        if len(stated) == 2 and isinstance(height, int) and isinstance(width, int):
            return height, width
    raise ValueError(f"{key} is {size!r}")


def _read_numbers(config: Mapping[str, object], key: str) -> tuple[float, ...]:
    value = config[key]
    numbers: Sequence[object] = value if isinstance(value, list) else [value]
    result = []
    for number in numbers:
        if not isinstance(number, int | float):
            raise TypeError(f"{key} is {value!r}")
        result.append(float(number))
    return tuple(result)
