"""Parsers of inputs, `name:dtype:dims`, and axes, `axis=size` or `axis=min:opt:max`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgepack.errors import SpecError
from edgepack.runtime.bundle.index import DTYPES
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec.suggestions import did_you_mean

# TensorRT 8 stores the size of an axis in 32 bits, and so do the kernels of later releases.
LARGEST = 2**31 - 1
# Largest size of an axis without a range, as a multiple of its usual one. It is small, since
# kernels must serve the whole range, and memory is allocated for its end.
ASSUMED_FACTOR = 4
# numpy has no bfloat16, so such an input is fed as float32 and the network is cast up.
_CAST_UP = {"bfloat16": "float32"}
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# At most 18 digits, since Python converts longer numbers in quadratic time.
_SIZE = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True)
class Span:
    """Range of sizes of a dynamic axis.

    Raises SpecError `axis-range` if they are not in order, below 1 or above LARGEST.

    Attributes:
        least, most: bounds, inclusive.
        usual: the size to optimize for, and that of generated inputs.
        assumed: True if only the usual size was declared, so that the bounds are estimates.
    """

    # Span(1, 8, 32) is the batch of a TensorRT engine that accepts 1 to 32 samples and is
    # optimized for 8; Span(8, 8, 8) fixes it.
    least: int
    usual: int
    most: int
    assumed: bool = False

    @classmethod
    def around(cls, size: int) -> Span:
        """Return the assumed range of an axis that usually has this size."""
        return cls(1, size, min(ASSUMED_FACTOR * size, LARGEST), assumed=True)

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.usual <= self.most <= LARGEST:
            raise SpecError(
                "axis-range",
                "the range of a dynamic axis is not in order",
                why=f"min {self.least}, opt {self.usual}, max {self.most}",
                hint=f"1 <= min <= opt <= max <= {LARGEST}",
            )


def parse_axis(text: str) -> tuple[str, Span]:
    """Parse the sizes of an axis: "tokens=128" or "batch=1:1:16". Raises SpecError for others."""
    name, _, sizes = text.partition("=")
    parts = sizes.split(":")
    if not _AXIS.match(name) or len(parts) not in (1, 3) or not all(map(_SIZE.match, parts)):
        raise SpecError(
            "axis-spec",
            f"not a valid size of an axis: {text}",
            why="it is not a name followed by one whole number or three",
            hint="--axis name=size or name=min:opt:max, for example --axis tokens=128 "
            "--axis batch=1:1:16",
        )
    if len(parts) == 1:
        return name, Span.around(int(parts[0]))
    least, usual, most = map(int, parts)
    return name, Span(least, usual, most)


def names_of(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the names of inputs or outputs, in order."""
    return tuple(tensor.name for tensor in tensors)


def find_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that is repeated; None if all differ."""
    for name in names:
        if names.count(name) > 1:
            return name
    return None


def parse_axes(texts: Sequence[str]) -> dict[str, Span]:
    """Parse the ranges of several axes. Raises SpecError if one is repeated."""
    ranges = list(map(parse_axis, texts))
    name = find_repeated([name for name, _ in ranges])
    if name is not None:
        raise SpecError(
            "axis-twice",
            f"the range of the axis {name!r} is repeated",
            why=", ".join(text for text in texts if text.startswith(f"{name}=")),
            hint="one --axis for each axis",
        )
    return dict(ranges)


def parse_inputs(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Parse several inputs. Raises SpecError if a name is repeated."""
    inputs = tuple(map(parse, texts))
    name = find_repeated(names_of(inputs))
    if name is not None:
        raise SpecError(
            "inputs-twice",
            f"two inputs are called {name!r}",
            why=f"--input: {', '.join(map(str, inputs))}",
            hint="use a different name for each input; inputs are bound by name",
        )
    return inputs


def parse(text: str) -> Tensor:
    """Parse an input: "image:float32:batch,3,224,224". Numbers are fixed axes, names dynamic ones.

    Without dims the input is a scalar. The name may contain colons. An input of bfloat16 becomes
    float32. Raises SpecError for any other form.
    """
    # "serving:x:int64:" has the name "serving:x" and no axes: the text is split from the right,
    # and padded in front, so that a text with too few parts has an empty name.
    name, dtype, dims = (["", "", *text.rsplit(":", 2)])[-3:]
    dtype = cast_up(dtype)
    if not name:
        raise _fault(text, "it does not have three parts")
    if dtype not in DTYPES:
        raise _fault(text, f"{dtype!r} is not an element type{did_you_mean(dtype, DTYPES)}")
    shape: list[Dim] = []
    for dim in filter(None, (part.strip() for part in dims.split(","))):
        if _SIZE.match(dim) and int(dim) <= LARGEST:
            shape.append(int(dim))
        elif _AXIS.match(dim):
            shape.append(dim)
        else:
            raise _fault(text, f"{dim!r} is neither the size nor the name of an axis")
    return Tensor(name, dtype, tuple(shape))


def cast_up(dtype: str) -> str:
    """Return the element type of the arrays fed to an input: float32 for bfloat16."""
    return _CAST_UP.get(dtype, dtype)


def _fault(text: str, why: str) -> SpecError:
    return SpecError(
        "input-spec",
        f"not a valid input: {text}",
        why=why,
        hint="--input name:dtype:dims, for example image:float32:batch,3,224,224",
    )
