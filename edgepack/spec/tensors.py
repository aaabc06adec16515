"""`name:dtype:dims` and `axis=min:opt:max`: inputs and axes as the command line takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.errors import SpecError
from edgepack.runtime.bundle.index import DTYPES
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec.document import did_you_mean

# TensorRT 8 counts an axis in 32 bits, and so do the kernels of the later ones.
LARGEST = 2**31 - 1
# numpy has no bfloat16: whoever feeds such an input feeds float32, and the network is cast up.
_CAST_UP = {"bfloat16": "float32"}
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SIZE = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True)
class Span:
    """The sizes that a dynamic axis may have.

    Raises SpecError `axis-range` where they are not in order, below 1 or above LARGEST.

    Attributes:
        least, most: inclusive.
        usual: the one to be fastest at.
    """

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.usual <= self.most <= LARGEST:
            raise SpecError(
                "axis-range",
                "the range of a dynamic axis is not in order",
                why=f"min {self.least}, opt {self.usual}, max {self.most}",
                hint=f"1 <= min <= opt <= max <= {LARGEST}",
            )


def parse_axis(text: str) -> tuple[str, Span]:
    """Read the range of an axis: "batch=1:1:16". Raises SpecError where it is not of this form."""
    name, _, sizes = text.partition("=")
    parts = sizes.split(":")
    if not _AXIS.match(name) or len(parts) != 3 or not all(map(_SIZE.match, parts)):
        raise SpecError(
            "axis-spec",
            f"this range of an axis cannot be understood: {text}",
            why="it is not a name, then three whole numbers",
            hint="--axis name=min:opt:max, for example --axis batch=1:1:16",
        )
    return name, Span(*map(int, parts))


def repeated(names: Sequence[str]) -> str | None:
    """The first of the names that stands twice."""
    return next((name for name in names if names.count(name) > 1), None)


def parse_axes(texts: Sequence[str]) -> dict[str, Span]:
    """Read the ranges of several axes. Raises SpecError where one is stated twice."""
    found = [parse_axis(text) for text in texts]
    name = repeated([name for name, _ in found])
    if name is not None:
        raise SpecError(
            "axis-twice",
            f"the range of the axis {name!r} is stated twice",
            why=", ".join(other for other in texts if other.startswith(f"{name}=")),
            hint="one --axis for each axis",
        )
    return dict(found)


def parse_inputs(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Read several inputs. Raises SpecError where two have one name."""
    found = tuple(map(parse, texts))
    name = repeated([tensor.name for tensor in found])
    if name is not None:
        raise SpecError(
            "inputs-twice",
            f"two inputs are called {name!r}",
            why=f"stated: {', '.join(map(str, found))}",
            hint="give each input a name of its own; inputs are bound by name",
        )
    return found


def parse(text: str) -> Tensor:
    """Read an input: "image:float32:batch,3,224,224". Numbers are fixed axes, names dynamic ones.

    No dims is a scalar. The name may hold colons. An input of bfloat16 is taken as float32. Raises
    SpecError where it is not of this form.
    """
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
            raise _fault(text, f"{dim!r} is neither a size nor the name of an axis")
    return Tensor(name, dtype, tuple(shape))


def cast_up(dtype: str) -> str:
    """Return the element type in which an input of a type without arrays is fed."""
    return _CAST_UP.get(dtype, dtype)


def _fault(text: str, why: str) -> SpecError:
    return SpecError(
        "input-spec",
        f"this input cannot be understood: {text}",
        why=why,
        hint="--input name:dtype:dims, for example image:float32:batch,3,224,224",
    )
