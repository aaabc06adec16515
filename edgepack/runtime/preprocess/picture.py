"""Pictures: decoded, turned upright, resized, cropped and normalised."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from ..strict_json import Reader
    from .protocol import ReadFile

# Largest picture that is accepted, since a file of a few kB can claim gigabytes of pixels.
MAX_PIXELS = 64_000_000
# Largest constants, and the smallest deviation, so that no pixel leaves the range of float32.
MOST = 1e12
# Files that are decoded. For others Pillow has decoders that are rarely tested, and for EPS it
# would start Ghostscript.
FORMATS = frozenset(
    ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
)
# Largest side after the resize.
MAX_SIDE = 1 << 14
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}
LAYOUTS = ("nchw", "nhwc")
CORNERS = ("even", "down")
DTYPES = ("float32", "uint8")
REQUIREMENT = "pillow>=9.1"
# Pillow 9.3 to 12.1 with libjpeg-turbo 2.1 to 3.1 make the same bits. Pillow 13 shrinks tall
# pictures in another order, with an error of up to 0.48 levels (RMS) in bilinear ones. Measured on
# 47 photographs, a decoder with a floating-point DCT stays above 39.9 dB. Another filter, such as
# bicubic for bilinear, passes for one of 2000 draws of four photographs.
LEAST_DB, LEVELS = 37.0, 0.6
# Pillow's modes of 16 and 32 bits per channel, "I;16" among them.
_DEEP_MODES = ("I", "F")

# One side, or height and width.
Size = Union[int, Tuple[int, int]]


class Fit(NamedTuple):
    """Position of a resized picture in the input, in pixels.

    A point (x, y) of a picture of W x H pixels is at (x * width / W + left, y * height / H + top).

    Attributes:
        width: of the resized picture.
        height: of the resized picture.
        left: of the picture's corner; negative where a crop cuts the picture.
        top: of the picture's corner.
        columns: width of the input.
        rows: height of the input.
    """

    width: int
    height: int
    left: int
    top: int
    columns: int
    rows: int


@dataclass(frozen=True)
class Picture:
    """Conversion of a picture (8 bits per channel) to an array.

    Resize and crop, or letterbox; then `(pixel * scale - mean) / std`.

    Attributes:
        resize: length of the shorter side, or (height, width), in pixels; None keeps the size.
        crop: centre crop, a side or (height, width), in pixels; None keeps the entire picture.
        letterbox: a side or (height, width), in pixels, that the entire picture is fitted into,
            centred, without a change of its proportions; None for resize and crop.
        pad: pixel of 0..255 of the borders of a letterbox.
        corner: rounding of half of a crop's margin: "even", torchvision's, or "down", that of
            transformers.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        antialias: average over all pixels that a shrunk one covers, as Pillow does; False
            interpolates between its nearest ones, as OpenCV does.
        colour: "rgb", "bgr" or "grey".
        layout: "nchw" or "nhwc".
        scale: factor on the 0..255 pixel.
        mean: per channel, in units after `scale`.
        std: per channel, in units after `scale`.
        input: name of the model's input; "" before the model is known.
        dtype: element type of the input, "float32" or "uint8".
    """

    # ImageNet, as torchvision's models expect it: resize=256, crop=224,
    # mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), and the defaults for the rest.
    resize: Optional[Size] = None
    crop: Optional[Size] = None
    letterbox: Optional[Size] = None
    pad: int = 114
    corner: str = "even"
    interpolation: str = "bilinear"
    antialias: bool = True
    colour: str = "rgb"
    layout: str = "nchw"
    scale: float = 1 / 255
    mean: Tuple[float, ...] = (0.0,)
    std: Tuple[float, ...] = (1.0,)
    input: str = ""
    dtype: str = "float32"

    @property
    def takes_text(self) -> bool:
        """False: a string is the path of a picture."""
        return False

    @property
    def least_db(self) -> Optional[float]:
        """SNR in dB that arrays of another version of Pillow or libjpeg reach."""
        return LEAST_DB

    @property
    def noise(self) -> float:
        """RMS error of an element that versions of Pillow may differ by: a share of a level."""
        return LEVELS * abs(self.scale) * len(self.std) / sum(map(abs, self.std))

    @classmethod
    def read(cls, reader: Reader, read_file: ReadFile) -> Picture:
        """Read the document of `to_json`. Raises the reader's error if it is not valid."""
        keys = {"kind", *(field.name for field in fields(cls))}
        for key in reader.value:
            # An unknown key would change the picture in a way that this loader cannot.
            if key not in keys:
                raise reader.fault(f"this loader has no key {key!r}")
        picture = cls(
            resize=_read_size(reader, "resize"),
            crop=_read_size(reader, "crop"),
            letterbox=_read_size(reader, "letterbox"),
            pad=reader.get("pad", int),
            corner=reader.get("corner", str),
            interpolation=reader.get("interpolation", str),
            antialias=reader.get("antialias", bool),
            colour=reader.get("colour", str),
            layout=reader.get("layout", str),
            scale=float(reader.get("scale", int, float)),
            mean=reader.each("mean", _read_number),
            std=reader.each("std", _read_number),
            input=reader.get("input", str),
            dtype=reader.get("dtype", str),
        )
        fault = picture.find_fault()
        if fault is not None:
            raise reader.fault(fault[0])
        return picture

    def to_json(self) -> Dict[str, object]:
        """Return the document in `bundle.json`."""
        document: Dict[str, object] = {"kind": "picture"}
        for field in fields(self):
            value = getattr(self, field.name)
            document[field.name] = list(value) if isinstance(value, tuple) else value
        return document

    def files(self) -> Mapping[str, bytes]:
        """Return no entries: the document is all."""
        return {}

    def requirements(self) -> Tuple[str, ...]:
        """Return the requirement of Pillow."""
        return (REQUIREMENT,)

    def versions(self) -> Dict[str, str]:
        """Return the versions of Pillow and of its JPEG decoder."""
        import_pillow()
        from PIL import __version__, features

        # Some systems build Pillow with another libjpeg, which decodes to other pixels.
        turbo = features.version_feature("libjpeg_turbo")
        return {"pillow": __version__, "libjpeg": turbo or str(features.version("jpg"))}

    def find_fault(self) -> Optional[Tuple[str, str]]:
        """Return the cause and the remedy if this contradicts itself or the input's type."""
        for key, value, choices in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("colour", self.colour, tuple(CHANNELS)),
            ("layout", self.layout, LAYOUTS),
            ("corner", self.corner, CORNERS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in choices:
                return f'{key} = "{value}" is not supported', f"one of {', '.join(choices)}"
        if self.letterbox is not None and (self.resize, self.crop) != (None, None):
            return "letterbox is combined with resize or crop", "use one of them"
        if not self.antialias and self.interpolation == "lanczos":
            return "lanczos always averages", "antialias = true, or another interpolation"
        if not 0 <= self.pad <= 255:
            return f"pad is {self.pad}", "a pixel from 0 to 255"
        channels = CHANNELS[self.colour]
        for key, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                counts = "1" if channels == 1 else f"1 or {channels}"
                return (
                    f"{key} has {len(numbers)} values; {self.colour} takes {counts}",
                    "state those of the training, such as mean=0.5,std=0.5",
                )
        for key, numbers in (("scale", (self.scale,)), ("mean", self.mean), ("std", self.std)):
            if max(map(abs, numbers)) > MOST:
                return f"{key} has a value beyond {MOST:g}", "pixels are from 0 to 255"
        if 0.0 in self.std:
            return "std is 0", "pixels are divided by std, so it must not be 0"
        if min(map(abs, self.std)) < 1 / MOST:
            return f"std has a value below {1 / MOST:g}", "pixels are divided by std"
        raw = self.scale == 1 and not any(self.mean) and set(self.std) == {1.0}
        if self.dtype == "uint8" and not raw:
            return (
                "the model takes uint8, and normalised pixels are not whole numbers",
                "for raw pixels: scale = 1.0, mean = [0.0], std = [1.0]",
            )
        return None

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return the feed of one picture. Raises as `to_array` does."""
        return self.to_feed(self.to_pixels(data, name))

    def to_feed(self, pixels: np.ndarray) -> Dict[str, np.ndarray]:
        """Return the feed of one picture from its pixels."""
        array = self.normalise(pixels)
        if self.dtype == "uint8":
            array = array.astype(np.uint8)
        return {self.input: array[None]}

    def to_array(self, data: bytes, name: str = "") -> np.ndarray:
        """Convert a picture to the model's input, without the batch axis.

        Returns:
            float32 of shape (channels, height, width) or (height, width, channels).

        Raises as `to_pixels` does.
        """
        return self.normalise(self.to_pixels(data, name))

    def to_pixels(self, data: bytes, name: str = "") -> np.ndarray:
        """Decode a picture, and bring it to the input's size and colours.

        The picture is turned upright by its EXIF orientation and loses its transparency. `resize`
        as one number is the length of the shorter side; the longer one becomes
        `int(resize * longer / shorter)`. Pillow's filters average when they shrink. The crop's
        corner is half of the margin, rounded to the nearest even pixel at a tie. These are
        torchvision's rules; those of a letterbox are Ultralytics'.

        Returns:
            uint8 of shape (height, width, channels).

        Raises:
            InputError: the picture is damaged, too large, too small, or deeper than 8 bits.
            DeviceError: Pillow is not installed.
        """
        # A picture of 640 x 480 with resize=256, crop=224 becomes 341 x 256, then 224 x 224 from
        # the corner (58, 16): round(117 / 2) is 58, the even neighbour of 58.5.
        name = name or "the picture"
        picture = decode(data, name, self.colour)
        fit = self.fit(picture.size, name)
        _require_pixels((fit.columns, fit.rows), name)
        picture = self._position(picture, fit)
        pixels = np.asarray(picture)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.colour == "bgr":
            pixels = pixels[:, :, ::-1]
        return pixels

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 of shape (channels, height, width) or (height, width, channels)."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        # All in float32: a float64 scale would promote the array and round differently from
        # training.
        array = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        if self.layout == "nchw":
            array = array.transpose(2, 0, 1)
        return np.ascontiguousarray(array)

    def fit(self, size: Tuple[int, int], name: str) -> Fit:
        """Return the position in the input of an upright picture of this width and height.

        Raises InputError if the picture is too small or too large.
        """
        # 640 x 480 in a letterbox of 320 x 320 becomes 320 x 240, 40 pixels below the top.
        width, height = size
        if self.letterbox is not None:
            rows, columns = sides(self.letterbox)
            ratio = min(rows / height, columns / width)
            # A picture of 1000 x 1 keeps a row of pixels.
            width, height = max(1, round(width * ratio)), max(1, round(height * ratio))
            # The smaller half of an odd margin is at the left and the top.
            left, top = (columns - width) // 2, (rows - height) // 2
            return Fit(width, height, left, top, columns, rows)
        if self.resize is not None:
            width, height = _resized(size, self.resize)
            if (width, height) != size:
                _require_pixels((width, height), name)
        if self.crop is None:
            return Fit(width, height, 0, 0, width, height)
        rows, columns = sides(self.crop)
        if width < columns or height < rows:
            raise InputError(
                "picture-too-small",
                f"{name} is smaller than the crop",
                why=f"{height} x {width} pixels; the crop is {rows} x {columns}",
                hint="use a resize that is at least as large as the crop",
            )
        if self.corner == "down":
            left, top = (width - columns) // 2, (height - rows) // 2
        else:
            left, top = round((width - columns) / 2), round((height - rows) / 2)
        return Fit(width, height, -left, -top, columns, rows)

    def _position(self, picture: Image, fit: Fit) -> Image:
        """Return a picture resized, and cropped or framed."""
        if picture.size != (fit.width, fit.height):
            picture = self._resize(picture, (fit.width, fit.height))
        if picture.size == (fit.columns, fit.rows):
            return picture
        # A box beyond the picture is black, so a letterbox needs a canvas.
        if self.letterbox is None:
            return picture.crop((-fit.left, -fit.top, fit.columns - fit.left, fit.rows - fit.top))
        from PIL import Image as pillow

        channels = len(picture.getbands())
        canvas = pillow.new(picture.mode, (fit.columns, fit.rows), (self.pad,) * channels)
        canvas.paste(picture, (fit.left, fit.top))
        return canvas

    def _resize(self, picture: Image, size: Tuple[int, int]) -> Image:
        code = INTERPOLATION_CODES[self.interpolation]
        if self.antialias:
            return picture.resize(size, code)
        # The affine map of the pixels' centres interpolates alone. 0 is Pillow's number of it.
        scales = (picture.width / size[0], 0, 0, 0, picture.height / size[1], 0)
        return picture.transform(size, 0, scales, code)


# Pillow's numbers of its filters, which have had two names.
INTERPOLATION_CODES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def import_pillow() -> None:
    """Import Pillow. Raises DeviceError if it is missing."""
    try:
        import PIL.Image
        import PIL.ImageOps  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "package-missing",
            "pictures need the package pillow",
            why=str(error),
            hint="python3 -m pip install pillow",
        ) from error


def decode(data: bytes, name: str, colour: str) -> Image:
    """Return a picture upright, in the colours of a preprocessing, of 8 bits per channel.

    Raises InputError if the picture is damaged, too large, or deeper than 8 bits.
    """
    import_pillow()
    from PIL import Image as pillow

    try:
        # Pillow warns of decompression bombs, which are refused below, and of damaged EXIF data.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(data)) as opened:
                return _convert(opened, name, colour)
    except pillow.UnidentifiedImageError as error:
        # Its message has the address of the buffer.
        raise _unreadable(name, "Pillow does not recognise its format") from error
    except pillow.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything for damaged files
        raise _unreadable(name, f"{type(error).__name__}: {error}") from error


def _convert(opened: ImageFile, name: str, colour: str) -> Image:
    from PIL import ImageOps

    if opened.format not in FORMATS:
        raise _unreadable(name, f"files of the kind {opened.format} are not decoded")
    _require_pixels(opened.size, name)
    if opened.mode.split(";")[0] in _DEEP_MODES:
        raise InputError(
            "picture-depth",
            f"{name} has more than 8 bits a channel",
            why=f"its pixels are of Pillow's mode {opened.mode}",
            hint="convert it to 8 bits, as in training",
        )
    upright = ImageOps.exif_transpose(opened)
    mode = "L" if colour == "grey" else "RGB"
    # A conversion to the same mode would copy it: 240 MB of 60 million pixels.
    return upright if upright.mode == mode else upright.convert(mode)


def _unreadable(name: str, why: str) -> InputError:
    return InputError(
        "picture-unreadable",
        f"{name} cannot be decoded",
        why=why,
        hint="replace the file: it must be a complete picture, such as a JPEG or a PNG",
    )


def read_size(data: bytes) -> Tuple[int, int]:
    """Return the width and the height of a picture, upright, without decoding it.

    The picture must be readable: `decode` says why one is not.
    """
    import_pillow()
    from PIL import Image as pillow

    with pillow.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        # Orientations 5 to 8 lie on their side; 274 is the tag's number.
        if picture.getexif().get(274, 1) in (5, 6, 7, 8):
            return height, width
        return width, height


def _require_pixels(size: Tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")


def _too_large(name: str, why: str) -> InputError:
    return InputError(
        "picture-too-large",
        f"{name} would take too much memory",
        why=f"{why}; at most {MAX_PIXELS:,} pixels are accepted",
        hint="shrink it first",
    )


def _resized(size: Tuple[int, int], resize: Size) -> Tuple[int, int]:
    """Return width and height after the resize."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def sides(size: Size) -> Tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def _read_size(reader: Reader, key: str) -> Optional[Size]:
    """Read a side, a list of height and width, or null."""
    value = reader.get(key, int, list, type(None))
    if value is None:
        return None
    sides: List[object] = value if isinstance(value, list) else [value]
    for side in sides:
        # Not `isinstance`, for which True is an int.
        if type(side) is not int or not 0 < side <= MAX_SIDE:
            raise reader.fault(f"{key} is {value!r}")
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise reader.fault(f"{key} is {value!r}")
    return value[0], value[1]


def _read_number(reader: Reader) -> float:
    if type(reader.value) not in (int, float):
        raise reader.fault("it is not a number")
    return float(reader.value)
