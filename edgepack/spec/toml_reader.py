"""Read TOML documents, validated against their JSON Schema with all faults in one error."""

from __future__ import annotations

import errno
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgepack import plugins
from edgepack.errors import DeprecatedName, SpecError
from edgepack.runtime.plain import read_plain
from edgepack.spec.suggestions import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError
    from referencing import Registry

# Schemas are recursive and open, so no narrower type describes one.
JsonSchema: TypeAlias = dict[str, Any]

# Old name of a table -> its name; old names work for one release.
RENAMED = {"quantization": "quantize"}
SCHEMAS = ("manifest", "target")
# Profiles and manifests are written by hand; a larger file is something else.
MAX_BYTES = 1 << 20


def read(path: Path) -> dict[str, object]:
    """Parse a TOML file. Raises SpecError if it cannot be read or is not TOML."""
    try:
        text = read_plain(path, MAX_BYTES).decode()
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise SpecError(
                "spec-too-large",
                f"{path} is too large to be a profile or a manifest",
                why=f"it has {path.stat().st_size} bytes; at most {MAX_BYTES} are read",
                hint="give the path of a TOML file",
            ) from error
        raise SpecError(
            "spec-unreadable",
            f"{path} cannot be read",
            why=error.strerror or str(error),
            hint="check the path and the permissions",
        ) from error
    except ValueError as error:
        raise _not_toml(path, error) from error
    return parse(text, path)


def parse(text: str, path: Path) -> dict[str, object]:
    """Parse the text of a TOML file; `path` is for messages. Raises SpecError."""
    try:
        table = tomllib.loads(text, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        raise _not_toml(path, error) from error
    return _rename_old_keys(table, path)


def _not_toml(path: Path, error: Exception) -> SpecError:
    return SpecError(
        "spec-not-toml",
        f"{path} is not valid TOML",
        why=str(error),
        hint="edgepack targets show cpu-fbgemm prints a valid example",
    )


def _rename_old_keys(table: dict[str, object], path: Path) -> dict[str, object]:
    """Return the document with the present names of its tables; warn of an old one."""
    # {"quantization": {"bits": 8}} becomes {"quantize": {"bits": 8}}, with a warning.
    renamed = {}
    for key, value in table.items():
        name = RENAMED.get(key, key)
        # With both names, the old one is an unknown key.
        if name in renamed or (name != key and name in table):
            name = key
        if name != key:
            message = f"the table [{key}] is now called [{name}]; rename it in {path}"
            warnings.warn(message, DeprecatedName, stacklevel=4)
        renamed[name] = value
    return renamed


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        # TOML allows inf and nan, but a gate of inf never fails and a gate of nan always does.
        raise ValueError(f"{text} is not a finite number")
    return number


@cache
def _validator(name: str) -> Draft202012Validator:
    import jsonschema
    import referencing
    from referencing.exceptions import NoSuchResource

    # A reference to an unknown schema must fail and never be fetched.
    def refuse(uri: str) -> None:
        raise NoSuchResource(ref=uri)

    documents = {f"{each}.schema.json": read_schema(each) for each in SCHEMAS}
    registry: Registry[JsonSchema] = referencing.Registry(retrieve=refuse)
    registry = registry.with_contents(documents.items())
    schema = documents[f"{name}.schema.json"]
    base = jsonschema.Draft202012Validator
    # JSON Schema accepts 1.0 as an integer, but it cannot be the size of an axis.
    types = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    # References between the schemas are relative to the file name, so that is the schema's id.
    return jsonschema.validators.extend(base, type_checker=types)(
        {**schema, "$id": f"{name}.schema.json"}, registry=registry
    )


def read_schema(name: str) -> JsonSchema:
    """Return the JSON Schema of a kind of document, one of SCHEMAS, with the tables of plug-ins."""
    path = resources.files("edgepack.spec") / "schema" / f"{name}.schema.json"
    schema: JsonSchema = json.loads(path.read_text(encoding="utf-8"))
    _add_plugins(schema)
    return schema


def _add_plugins(schema: JsonSchema) -> None:
    """Allow tables of the passes of plug-ins, and their engines, in a schema, in place.

    The options in such a table are checked by the pass itself.
    """
    # Keys that the schema already has are edgepack's own, so a plug-in cannot replace them.
    properties = schema["properties"]
    for name in plugins.list_plugins(plugins.PASSES, tuple(properties)):
        properties[name] = {"$ref": "target.schema.json#/$defs/options"}
    if "engine" in properties:
        names = properties["engine"]["properties"]["name"]["enum"]
        names += plugins.list_plugins(plugins.ENGINES, tuple(names))


def faults(document: Mapping[str, object], schema: str) -> list[str]:
    """List the faults of a document, each with the path of its key; empty if it is valid.

    Args:
        document: the parsed document.
        schema: "target" or "manifest".
    """
    lines: list[str] = []
    for error in sorted(_validator(schema).iter_errors(document), key=_sort_key):
        lines += _describe(error)
    return lines


def _sort_key(error: ValidationError) -> list[str]:
    # The parts of a path are strings and indices, which do not compare with each other.
    return [str(part) for part in error.path]


def check(document: Mapping[str, object], schema: str, origin: str) -> None:
    """Raise SpecError naming every fault of a document, if it has any."""
    lines = faults(document, schema)
    if lines:
        raise SpecError(
            f"{schema}-invalid",
            f"{origin} is not a valid {schema}",
            why="\n".join(lines),
            hint="correct the keys named above",
        )


# Types of JSON Schema, in words.
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "array": "list",
    "object": "table",
    "boolean": "true or false",
}


# Lines for the message, with the path of the key in the document:
#   inputs[0].dtype: 'float23' is not known; did you mean 'float32'?
#   device.arc: unknown key; did you mean 'arch'?
#   gates: 'quality' is a required property
def _describe(error: ValidationError) -> list[str]:
    path = ""
    for key in error.absolute_path:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            path += f".{key}"
    path = path.lstrip(".")
    if error.validator == "additionalProperties":
        return _describe_unknown(error, path)
    if error.validator == "enum" and isinstance(error.instance, str):
        choices = map(str, error.validator_value)
        return [f"{path}: {error.instance!r} is not known{did_you_mean(error.instance, choices)}"]
    if error.validator in ("anyOf", "oneOf") and error.context:
        return _describe_forms(error, error.context, path)
    return [f"{path or 'the document'}: {error.message}"]


def _describe_forms(
    error: ValidationError, forms: Sequence[ValidationError], path: str
) -> list[str]:
    """Describe a value of several forms: its fault in the form that has its type, if one has."""
    # Of a whole number or a list, [28, "a"] is meant as the list: only [1] is at fault.
    meant = [form for form in forms if form.validator != "type" or form.relative_path]
    if meant:
        return _describe(meant[0])
    types = " or ".join(_TYPES.get(str(form.validator_value), "value") for form in forms)
    return [f"{path}: {error.instance!r} is not a {types}"]


def _describe_unknown(error: ValidationError, path: str) -> list[str]:
    # jsonschema reports all unknown keys of a table as one error; each gets a line.
    properties = error.schema.get("properties", {})
    prefix = f"{path}." if path else ""
    lines = []
    for key in error.instance:
        if key not in properties:
            lines.append(f"{prefix}{key}: unknown key{did_you_mean(key, properties)}")
    return lines
