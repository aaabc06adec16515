"""The report's types and its JSON Schema describe the same document."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from edgepack.report.documents import Report
from edgepack.report.model import schema

# Recorded in the index, and left out of the report.
VERDICT_ONLY = {"reference"}


def is_document(hint: object) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union without None: the hint alone if it is no union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not type(None)]
    return [hint]


def resolve(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference, and take the form that is not null."""
    if "$ref" in entry:
        name = entry["$ref"].removeprefix("#/$defs/")
        return resolve(schema()["$defs"][name])  # type: ignore[index]
    if "oneOf" in entry:
        (form,) = (form for form in entry["oneOf"] if form != {"type": "null"})
        return resolve(form)
    return entry


def pairs(path: str, hint: Any, entry: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield every TypedDict below a hint with the schema of its object."""
    forms = alternatives(hint)
    if len(forms) > 1:
        return  # numbers and booleans
    hint, entry = forms[0], resolve(entry)
    if is_document(hint):
        yield path, hint, entry
        for key, inner in typing.get_type_hints(hint).items():
            if key in entry.get("properties", {}):
                yield from pairs(f"{path}.{key}", inner, entry["properties"][key])
    elif typing.get_origin(hint) is list and "items" in entry:
        yield from pairs(f"{path}[]", typing.get_args(hint)[0], entry["items"])
    elif typing.get_origin(hint) in (dict, Mapping) and isinstance(
        entry.get("additionalProperties"), dict
    ):
        yield from pairs(f"{path}.*", typing.get_args(hint)[1], entry["additionalProperties"])


PAIRS = list(pairs("report", Report, schema()))


@pytest.mark.parametrize(("path", "hint", "entry"), PAIRS, ids=[path for path, _, _ in PAIRS])
def test_a_type_has_the_keys_of_its_schema(path: str, hint: Any, entry: Mapping[str, Any]) -> None:
    assert set(typing.get_type_hints(hint)) - VERDICT_ONLY == set(entry["properties"])


@pytest.mark.parametrize(("path", "hint", "entry"), PAIRS, ids=[path for path, _, _ in PAIRS])
def test_what_a_schema_requires_a_type_requires_too(
    path: str, hint: Any, entry: Mapping[str, Any]
) -> None:
    missing = set(entry["required"]) - hint.__required_keys__ - hint.__optional_keys__
    assert not missing


def test_the_walk_reaches_every_part_of_the_report() -> None:
    names = {hint.__name__ for _, hint, _ in PAIRS}
    assert {"Report", "Question", "Gate", "OutputMetrics", "RecordDocument", "Change"} <= names
