"""JSON that others wrote, read strictly.

Python's reader takes what other readers do not: a key twice, NaN, numbers that no float holds,
and nesting until its stack ends. Here each of those is a fault, and a wrong value is named by the
path of its key.
"""

from __future__ import annotations

import json
import math
from typing import Any, Callable, Dict, List, Mapping, Tuple

from ..errors import EdgepackError

MAX_DEPTH = 32
# A sign and 2 ** 64.
MAX_DIGITS = 21
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))

# From the path of a key and what is wrong with it to the error.
Fault = Callable[[str, str], EdgepackError]


class Reader:
    """Typed access to a value; the error names the key that is wrong.

    Attributes:
        value: as `json` gave it.
        path: of its keys, from the top.
    """

    def __init__(self, value: Any, path: str, fault: Fault) -> None:
        self.value = value
        self.path = path
        self._fault = fault

    def fault(self, why: str) -> EdgepackError:
        """The error that lays a fault at this value."""
        return self._fault(self.path, why)

    def _key(self, key: str) -> str:
        return "{}.{}".format(self.path, key).strip(".")

    def get(self, key: str, *types: type) -> Any:
        """The value of a key that must be of one of those types. A bool is no number."""
        if not isinstance(self.value, dict) or key not in self.value:
            raise self.fault("the key {!r} is missing".format(key))
        value = self.value[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self._fault(self._key(key), "it has the wrong type")
        return value

    def at(self, key: str) -> Reader:
        """The object that a key holds."""
        return Reader(self.get(key, dict), self._key(key), self._fault)

    def each(self, key: str, read: Callable[[Reader], Any]) -> Tuple[Any, ...]:
        """Every element of the list that a key holds, as `read` makes of it."""
        path = self._key(key)
        return tuple(
            read(Reader(value, "{}[{}]".format(path, i), self._fault))
            for i, value in enumerate(self.get(key, list))
        )

    def text(self) -> str:
        """The value, which must be a string."""
        if not isinstance(self.value, str):
            raise self.fault("it is not a string")
        return self.value

    def number(self) -> int:
        """The value, which must be a whole number."""
        if type(self.value) is not int:
            raise self.fault("it is not a whole number")
        return self.value


def parse(data: bytes, fault: Fault, max_bytes: int) -> Reader:
    """A JSON document. Raises what `fault` gives where it is none, or is not strict."""

    def no_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise fault("", "a key stands twice")
        return dict(pairs)

    def constant(text: str) -> Any:
        raise fault("", "{} is not a number of JSON".format(text))

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise fault("", "{} is too large a number".format(text))
        return number

    def whole(text: str) -> int:
        # Python's integers have no end; what is computed from one may be a float.
        if len(text) > MAX_DIGITS:
            raise fault("", "{}... is too large a number".format(text[:MAX_DIGITS]))
        return int(text)

    if len(data) > max_bytes:
        raise fault("", "it has {} bytes; at most {} are read".format(len(data), max_bytes))
    if _depth(data) > MAX_DEPTH:
        raise fault("", "it is nested deeper than {} levels".format(MAX_DEPTH))
    try:
        document = json.loads(
            data.decode("ascii"),
            object_pairs_hook=no_duplicates,
            parse_constant=constant,
            parse_float=finite,
            parse_int=whole,
        )
    except ValueError as error:
        raise fault("", "it is not JSON: {}".format(error)) from error
    return Reader(document, "", fault)


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, found without recursion."""
    # Without escapes every other quote ends a string; what no string holds are the even parts.
    parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    depth = deepest = 0
    for bracket in b"".join(parts).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"{[" else -1
        deepest = max(deepest, depth)
    return deepest


def encode(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, ASCII, no NaN."""
    text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    return text.encode("ascii") + b"\n"
