"""`name:dtype:dims`: an input as the command line takes it."""

from __future__ import annotations

import re

from edgepack.errors import SpecError
from edgepack.runtime.index import DTYPES
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec.document import did_you_mean

_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def parse(text: str) -> Tensor:
    """Read an input: "image:float32:batch,3,224,224". Numbers are fixed axes, names dynamic ones.

    No dims is a scalar. The name may hold colons. Raises SpecError where it is not of this form.
    """
    name, dtype, dims = (["", "", *text.rsplit(":", 2)])[-3:]
    if not name:
        raise _fault(text, "it does not have three parts")
    if dtype not in DTYPES:
        raise _fault(text, f"{dtype!r} is not an element type{did_you_mean(dtype, DTYPES)}")
    shape: list[Dim] = []
    for dim in filter(None, (part.strip() for part in dims.split(","))):
        if dim.isdigit() and int(dim) > 0:
            shape.append(int(dim))
        elif _AXIS.match(dim):
            shape.append(dim)
        else:
            raise _fault(text, f"{dim!r} is neither a size nor the name of an axis")
    return Tensor(name, dtype, tuple(shape))


def _fault(text: str, why: str) -> SpecError:
    return SpecError(
        "input-spec",
        f"this input cannot be understood: {text}",
        why=why,
        hint="--input name:dtype:dims, for example image:float32:batch,3,224,224",
    )
