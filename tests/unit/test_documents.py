"""The types of the report, of manifests and of profiles describe the documents of their schemas."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from edgepack.report.documents import Report
from edgepack.report.model import schema
from edgepack.spec.documents import ManifestDocument, TargetDocument
from edgepack.spec.toml_reader import read_schema

# Recorded in the index, and left out of the report.
VERDICT_ONLY = {"reference"}


def is_document(hint: object) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union without None: the hint alone if it is no union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not type(None)]
    return [hint]


class Walk:
    """Walk over a type and the schema of the same document.

    Args:
        root: the schema, for references such as "#/$defs/gate".
        files: other schemas, for references such as "target.schema.json#/$defs/quality".
    """

    def __init__(self, root: Any, files: Mapping[str, Any] | None = None) -> None:
        self.files = {"": root, **(files or {})}

    def resolve(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow a reference, and take the form that is not null."""
        if "$ref" in entry:
            file, _, name = entry["$ref"].partition("#/$defs/")
            return self.resolve(self.files[file]["$defs"][name])
        if "oneOf" in entry:
            (form,) = (form for form in entry["oneOf"] if form != {"type": "null"})
            return self.resolve(form)
        return entry

    def pairs(
        self, path: str, hint: Any, entry: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield every TypedDict below a hint with the schema of its object."""
        forms = alternatives(hint)
        if len(forms) > 1:
            return  # numbers and booleans
        hint, entry = forms[0], self.resolve(entry)
        if is_document(hint):
            yield path, hint, entry
            for key, inner in typing.get_type_hints(hint).items():
                if key in entry.get("properties", {}):
                    yield from self.pairs(f"{path}.{key}", inner, entry["properties"][key])
        elif typing.get_origin(hint) is list and "items" in entry:
            yield from self.pairs(f"{path}[]", typing.get_args(hint)[0], entry["items"])
        elif typing.get_origin(hint) in (dict, Mapping) and isinstance(
            entry.get("additionalProperties"), dict
        ):
            yield from self.pairs(
                f"{path}.*", typing.get_args(hint)[1], entry["additionalProperties"]
            )


TARGET = read_schema("target")
MANIFEST = read_schema("manifest")
PAIRS = [
    *Walk(schema()).pairs("report", Report, schema()),
    *Walk(TARGET).pairs("target", TargetDocument, TARGET),
    *Walk(MANIFEST, {"target.schema.json": TARGET}).pairs("manifest", ManifestDocument, MANIFEST),
]


@pytest.mark.parametrize(("path", "hint", "entry"), PAIRS, ids=[path for path, _, _ in PAIRS])
def test_a_type_has_the_keys_of_its_schema(path: str, hint: Any, entry: Mapping[str, Any]) -> None:
    unlisted = VERDICT_ONLY if path.startswith("report") else set()
    assert set(typing.get_type_hints(hint)) - unlisted == set(entry["properties"])


@pytest.mark.parametrize(("path", "hint", "entry"), PAIRS, ids=[path for path, _, _ in PAIRS])
def test_what_a_schema_requires_a_type_requires_too(
    path: str, hint: Any, entry: Mapping[str, Any]
) -> None:
    missing = set(entry.get("required", ())) - hint.__required_keys__ - hint.__optional_keys__
    assert not missing


@pytest.mark.parametrize(
    ("path", "hint", "entry"),
    [pair for pair in PAIRS if not pair[0].startswith("report")],
    ids=[path for path, _, _ in PAIRS if not path.startswith("report")],
)
def test_a_key_is_read_without_a_default_only_if_its_schema_requires_it(
    path: str, hint: Any, entry: Mapping[str, Any]
) -> None:
    assert hint.__required_keys__ == set(entry.get("required", ()))


def test_the_walk_reaches_every_part_of_the_documents() -> None:
    names = {hint.__name__ for _, hint, _ in PAIRS}
    assert {"Report", "Question", "Gate", "OutputMetrics", "RecordDocument", "Change"} <= names
    assert {"TargetDocument", "DeviceTable", "EngineTable", "WheelsTable", "GatesTable"} <= names
    assert {"ManifestDocument", "InputTable", "AxisTable", "OutputTable", "SamplesTable"} <= names
