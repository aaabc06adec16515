"""TOML documents held against their JSON Schema, with every fault told at once."""

from __future__ import annotations

import errno
import json
import math
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from edgepack.errors import SpecError
from edgepack.runtime.plain import read_plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A profile or a manifest is written by hand; a larger file is something else.
MAX_BYTES = 1 << 20
# The tables that hold a pass's options, and the pass.
PASS_TABLES = {
    "prune": "prune",
    "factorize": "factorize",
    "distill": "distill",
    "quantization": "quantize",
    "half": "half",
}


def read(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises SpecError where it cannot be read or is not TOML."""
    try:
        text = read_plain(path, MAX_BYTES).decode()
        found = tomllib.loads(text, parse_float=_finite)
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
    except (ValueError, RecursionError) as error:
        raise SpecError(
            "spec-not-toml",
            f"{path} is not valid TOML",
            why=str(error),
            hint="edgepack targets show cpu-fbgemm prints one that is",
        ) from error
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        # A bound that nothing can miss, or everything must.
        raise ValueError(f"{text} is not a finite number")
    return number


@cache
def _validator(name: str) -> Any:
    import jsonschema
    import referencing
    from referencing.exceptions import NoSuchResource

    def nothing_from_outside(uri: str) -> Any:
        raise NoSuchResource(ref=uri)

    folder = resources.files("edgepack.spec") / "schema"
    documents = {
        entry.name: json.loads(entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    }
    registry: Any = referencing.Registry(retrieve=nothing_from_outside)
    registry = registry.with_contents(documents.items())
    schema = documents[f"{name}.schema.json"]
    base = jsonschema.Draft202012Validator
    # JSON takes 1.0 for an integer; an axis of that size is none.
    types = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    # References between the schemas are relative: this one is known by its file's name.
    return jsonschema.validators.extend(base, type_checker=types)(
        {**schema, "$id": f"{name}.schema.json"}, registry=registry
    )


def faults(document: Mapping[str, Any], schema: str) -> list[str]:
    """Every fault of a document, each with the path of its key; empty where it is valid.

    Args:
        document: as parsed.
        schema: "target" or "manifest".
    """
    found = sorted(_validator(schema).iter_errors(document), key=lambda e: list(map(str, e.path)))
    return [line for error in found for line in _tell(error)]


def check(document: Mapping[str, Any], schema: str, origin: str) -> None:
    """Raise SpecError naming every fault of a document, if it has any."""
    told = faults(document, schema)
    if told:
        raise SpecError(
            f"{schema}-invalid",
            f"{origin} is not a valid {schema}",
            why="\n".join(told),
            hint="correct the keys named above",
        )


def passes(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The options of passes in a profile or a manifest, by pass; [quantization] is quantize's."""
    named = {PASS_TABLES[key]: table for key, table in document.items() if key in PASS_TABLES}
    return {name: dict(table) for name, table in named.items()}


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The known word that is most like this one; "" where none is like it.

    Args:
        word: what was written.
        known: what it may have meant.
        likeness: the least, from 0 to 1, as `difflib` counts it.
    """
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=likeness)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known word is near, else what there is."""
    known = sorted(known)
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else f"; there are: {', '.join(known)}"


def _tell(error: Any) -> list[str]:
    path = ""
    for key in error.absolute_path:
        path += f"[{key}]" if isinstance(key, int) else f".{key}"
    path = path.lstrip(".")
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = [key for key in error.instance if key not in known]
        prefix = path + "." if path else ""
        return [f"{prefix}{key}: unknown key{did_you_mean(key, known)}" for key in unknown]
    if error.validator == "enum" and isinstance(error.instance, str):
        known = [str(value) for value in error.validator_value]
        return [f"{path}: {error.instance!r} is not known{did_you_mean(error.instance, known)}"]
    return [f"{path or 'the document'}: {error.message}"]
