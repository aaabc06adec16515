"""Catalogue of the passes: every option with its type, default, values and description.

All of it is read from the passes themselves, those of plug-ins as well: the fields of the options
dataclass, the `Attributes:` of its docstring, and the check of its values. The first sentence of a
pass's docstring is its summary.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields

from edgepack.errors import ChainError, EdgepackError, PluginError
from edgepack.passes.options import PassOptions
from edgepack.passes.table import find_pass, list_names
from edgepack.spec.suggestions import did_you_mean

# Type of a field as written in the dataclass -> its name for people.
_TYPES = {
    "bool": "true or false",
    "float": "number",
    "int": "whole number",
    "str": "text",
    "tuple[float, ...]": "list of numbers",
    "tuple[str, ...]": "list of text",
    "tuple[int, ...]": "list of whole numbers",
    "Mapping[str, Any]": "table",
    "Mapping[str, object]": "table",
}
# A sentence ends with a stop that is not the one of "e.g." or of a number.
_SENTENCE = re.compile(r"(?<=[a-z0-9)\"`%])\.(?=\s+[A-Z\"]|$)")


@dataclass(frozen=True)
class Option:
    """Option of a pass.

    Attributes:
        name: its name in a chain, and its key in a manifest.
        type: its type, in words.
        default: its default as a chain would spell it; "" if it is chosen by the pass.
        values: the accepted values or their bounds; "" if any value of the type is accepted.
        summary: the first sentence of its description.
        description: its description in the docstring of the options.
    """

    name: str
    type: str
    default: str
    values: str
    summary: str
    description: str

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values to choose from; empty for numbers, names and text."""
        if self.type == "true or false":
            return ("true", "false")
        if not self.values or self.values.startswith(("from ", ">=")):
            return ()
        return tuple(self.values.split(", "))


@dataclass(frozen=True)
class Entry:
    """Pass of the catalogue.

    Attributes:
        name: its name in a chain.
        domain: "module" for a pass on the torch module, "graph" for one on the ONNX graph.
        summary: its purpose in one sentence.
        options: its options, in the order of the dataclass.
    """

    name: str
    domain: str
    summary: str
    options: tuple[Option, ...]


def list_entries() -> list[Entry]:
    """Return all passes, in the order in which they combine."""
    return list(map(describe_pass, list_names()))


def describe_pass(name: str) -> Entry:
    """Return the entry of a pass. Raises ChainError for an unknown name."""
    names = list_names()
    if name not in names:
        raise ChainError(
            "chain-unknown-pass",
            f"there is no pass named {name!r}",
            why=f"it is not in the catalogue{did_you_mean(name, names)}",
            hint="edgepack passes",
        )
    definition = find_pass(name)
    kind = definition.options
    options = tuple(_describe_option(name, kind, field) for field in fields(kind))
    summary = _first_sentence(inspect.cleandoc(type(definition).__doc__ or ""))
    return Entry(name, definition.domain, summary, options)


def _describe_option(name: str, kind: type[PassOptions], field: Field[object]) -> Option:
    declared = _read_type(name, field)
    description = read_attributes(kind).get(field.name, "")
    return Option(
        name=field.name,
        type=_TYPES[declared],
        default=_format_default(field),
        values=_describe_values(kind, field, declared),
        summary=_first_sentence(description),
        description=description,
    )


def _read_type(name: str, field: Field[object]) -> str:
    """Return the type of an option as its dataclass declares it, a key of _TYPES.

    Raises PluginError for a type that a chain and a manifest cannot express.
    """
    # A string under `from __future__ import annotations`, a type without it.
    declared = field.type
    if not isinstance(declared, str):
        declared = inspect.formatannotation(declared, base_module="typing")
    # "bool | None" is a bool whose default the pass chooses.
    declared = declared.removesuffix(" | None")
    for package in ("typing.", "collections.abc."):
        declared = declared.replace(package, "")
    if declared not in _TYPES:
        raise PluginError(
            "plugin-option-type",
            f"the option {field.name} of {name} has a type that no manifest can express",
            why=f"it is declared as {declared}; supported are {', '.join(_TYPES)}",
            hint=f"declare {field.name} as one of them",
        )
    return declared


def _format_default(field: Field[object]) -> str:
    if field.default in (MISSING, None, "", ()):
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return str(field.default)


def _describe_values(kind: type[PassOptions], field: Field[object], declared: str) -> str:
    """Return the values that an option accepts.

    The options check themselves when they are made, so that an impossible value is answered with
    the possible ones: `QuantizeOptions(calibrator=object())` raises "one of minmax, percentile,
    ...". A field whose check depends on other options states its values in its metadata.
    """
    if "values" in field.metadata:
        return str(field.metadata["values"])
    if declared not in ("float", "int", "str"):
        return ""
    try:
        kind(**{field.name: object()})
    except ChainError as error:
        return _read_refusal(error)
    return ""


def _read_refusal(error: EdgepackError) -> str:
    """Return the values that a refusal names; "" for one that names only a type."""
    if error.hint.startswith("one of "):
        choices = error.hint.removeprefix("one of ").split(", ")
        return ", ".join(filter(None, choices))
    bounds = re.fullmatch(r"it must be (?:a number|a whole number) (.+)", error.why)
    if bounds is None:
        return ""
    # The bound of a seed, 2**63 - 1, is no news to anyone.
    return re.sub(r"from (\S+) to \S+e\+\S+", r">= \1", bounds.group(1))


def read_attributes(kind: type) -> Mapping[str, str]:
    """Return the descriptions under `Attributes:` of a class and of its bases, by field."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        descriptions.update(_parse_attributes(base.__doc__ or ""))
    return descriptions


def _parse_attributes(docstring: str) -> dict[str, str]:
    """Parse the section `Attributes:` of a docstring.

    "Attributes:\\n    mode: values that\\n        become integers." gives
    {"mode": "values that become integers."}.
    """
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    descriptions: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.+)", line)
        if start:
            name = start.group(1)
            descriptions[name] = start.group(2)
        elif name and line.strip():
            descriptions[name] += f" {line.strip()}"
    return descriptions


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = _SENTENCE.search(paragraph)
    if end is None:
        return paragraph
    return paragraph[: end.end()]
