"""Strict reader for JSON from untrusted files.

Python's reader accepts documents that others refuse: repeated keys, NaN, numbers beyond any float,
and nesting down to a stack overflow. Each of those is a fault here, and a wrong value is named by
the path of its key, as in `bundle.json: variants[0].needs.isa: it has the wrong type`.
"""

from __future__ import annotations

import json
import math
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Tuple, Type, TypeVar

from .errors import EdgepackError

MAX_DEPTH = 32
# A sign and 2 ** 64.
MAX_DIGITS = 21
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))

Value = TypeVar("Value")
# Makes the error from the path of a key and the reason.
Fault = Callable[[str, str], EdgepackError]


class Reader:
    """Typed access to a JSON value; errors name the offending key.

    Attributes:
        value: the value from `json`.
        path: the keys that lead to it, from the top: `variants[0].needs`.
    """

    def __init__(self, value: Any, path: str, fault: Fault) -> None:
        self.value = value
        self.path = path
        self._fault = fault

    def fault(self, why: str) -> EdgepackError:
        """Return the error for a fault in this value."""
        return self._fault(self.path, why)

    def _key(self, key: str) -> str:
        return f"{self.path}.{key}".strip(".")

    def get(self, key: str, *types: Type[Value]) -> Value:
        """Return the value of a key, which must be of one of these types; a bool is no number."""
        if not isinstance(self.value, dict) or key not in self.value:
            raise self.fault(f"the key {key!r} is missing")
        value: Value = self.value[key]
        # `isinstance(True, int)` holds in Python, so bools are excluded explicitly.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self._fault(self._key(key), "it has the wrong type")
        return value

    def at(self, key: str) -> Reader:
        """Return a reader for the object under a key."""
        return Reader(self.get(key, dict), self._key(key), self._fault)

    def each(self, key: str, read: Callable[[Reader], Value]) -> Tuple[Value, ...]:
        """Return the elements of the list under a key, each converted by `read`."""
        path = self._key(key)
        elements = []
        for i, value in enumerate(self.get(key, list)):
            elements.append(read(Reader(value, f"{path}[{i}]", self._fault)))
        return tuple(elements)

    def text(self) -> str:
        """Return the value, which must be a string."""
        if not isinstance(self.value, str):
            raise self.fault("it is not a string")
        return self.value

    def number(self) -> int:
        """Return the value, which must be a whole number."""
        # Not `isinstance`, for which True is an int.
        if type(self.value) is not int:
            raise self.fault("it is not a whole number")
        return self.value


def parse(data: bytes, fault: Fault, max_bytes: int, encoding: str = "ascii") -> Reader:
    """Parse a JSON document. Raises the error from `fault` if it is not strict JSON."""

    def no_duplicates(pairs: List[Tuple[str, object]]) -> Dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise fault("", "a key is repeated")
        return entries

    def constant(text: str) -> NoReturn:
        raise fault("", f"{text} is not a JSON number")

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise fault("", f"the number {text} is too large")
        return number

    def whole(text: str) -> int:
        # Python's integers have no limit, but computing with a huge one may overflow a float.
        if len(text) > MAX_DIGITS:
            raise fault("", f"the number {text[:MAX_DIGITS]}... is too large")
        return int(text)

    if len(data) > max_bytes:
        raise fault("", f"it has {len(data)} bytes; the limit is {max_bytes}")
    if _depth(data) > MAX_DEPTH:
        raise fault("", f"it is nested deeper than {MAX_DEPTH} levels")
    try:
        document = json.loads(
            data.decode(encoding),
            object_pairs_hook=no_duplicates,
            parse_constant=constant,
            parse_float=finite,
            parse_int=whole,
        )
    except ValueError as error:
        raise fault("", f"it is not JSON: {error}") from error
    return Reader(document, "", fault)


def _depth(data: bytes) -> int:
    """Return the deepest nesting of brackets outside strings, without recursion."""
    # With the escapes removed, quotes alternate between opening and closing a string, so the even
    # pieces lie outside strings: {"a{": [1]} splits into `{`, `a{` and `: [1]}`, of depth 2.
    parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    depth = deepest = 0
    for bracket in b"".join(parts).translate(None, _NO_BRACKETS):
        if bracket in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def encode(document: Mapping[str, object]) -> bytes:
    """Encode a document as canonical JSON: sorted keys, ASCII, no NaN."""
    text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    return text.encode("ascii") + b"\n"
