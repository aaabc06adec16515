"""Write the reference pages that follow from the code: run `make reference` after a change.

The command line comes from click, the passes from the dataclasses of their options, manifest and
profile from their JSON Schemas, the error codes from the places that raise them. A test compares
the pages in docs/reference with what this module writes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from edgepack.cli.sections import SectionedCommand

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgepack"
PAGES = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/reference_pages.py; change the code, then run `make reference`. -->\n"
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+\Z")


def escape(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def capitalize(text: str) -> str:
    """Return text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Format a Markdown table; "" without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    rule = "|".join("---" for _ in headings)
    return "\n".join((f"| {' | '.join(headings)} |", f"|{rule}|", *lines)) + "\n"


# -- the command line


def write_command_line() -> str:
    """Return the page of every command, its arguments and options."""
    from edgepack.cli import cli

    parts = [
        NOTE,
        "# Command line\n",
        "Results go to standard output; progress, warnings and errors go to standard error. With\n"
        "`--json` standard output holds one JSON document and nothing else, also for an error.\n"
        "Every option can be set in the environment: `build --max-drop` is\n"
        "`EDGEPACK_BUILD_MAX_DROP`.\n\n"
        "See [exit codes](exit-codes.md) and [error codes](errors.md).\n",
    ]
    context = click.Context(cli, info_name="edgepack")
    for name, command in cli.commands.items():
        parts += describe_command(command, context, name)
    return "\n".join(parts)


def describe_command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    """Yield the section of a command, and of the commands below it."""
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        for inner, subcommand in command.commands.items():
            yield from describe_command(subcommand, context, inner)
        return
    yield f"## {context.command_path}\n"
    yield f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    if not isinstance(command, SectionedCommand):
        yield table(("option", "meaning"), list_options(command.params, context))
        return
    for heading, options in command.list_sections(context):
        shown = [option for option in options if not option.is_eager]
        yield f"**{heading}**\n"
        yield table(("option", "meaning"), list_options(shown, context))


def list_options(
    parameters: Sequence[click.Parameter], context: click.Context
) -> Iterator[tuple[str, ...]]:
    """Yield the spelling and the help of every option, as `--help` prints them."""
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"`{escape(record[0])}`".replace("\\|", "\\|"), escape(record[1])


# -- the passes


def write_passes() -> str:
    """Return the page of every pass and its options."""
    from edgepack.passes import catalogue

    parts = [
        NOTE,
        "# Passes\n",
        "A chain is an ordered list of passes, `--chain prune:structured=0.5,distill,quantize`;\n"
        '`none` is the empty chain. Passes are separated by ",", a pass and its options by ":",\n'
        "as in `--chain quantize:calibrator=percentile:percentile=99.9`. An option is set in the\n"
        "chain, or in a table of the pass in a manifest or a profile. `edgepack passes NAME`\n"
        "prints the same.\n",
    ]
    for entry in catalogue.list_entries():
        domain = "torch module" if entry.domain == "module" else "ONNX graph"
        parts.append(f"## {entry.name}\n\n{entry.summary} Works on the {domain}.\n")
        rows = (
            (
                f"`{option.name}`",
                option.type,
                f"`{option.default}`" if option.default else "",
                escape(option.values),
                capitalize(escape(option.description)),
            )
            for option in entry.options
        )
        parts.append(table(("option", "type", "default", "values", "meaning"), rows))
    return "\n".join(parts)


# -- manifest and target profile


def read_schema(name: str) -> Mapping[str, Any]:
    """Return a schema of edgepack/spec/schema."""
    path = PACKAGE / "spec" / "schema" / f"{name}.schema.json"
    document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def resolve(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference; keys beside it, such as a description, take precedence."""
    reference = entry.get("$ref")
    if reference is None:
        return entry
    file, _, path = reference.partition("#/")
    if file:
        schema = read_schema(file.removesuffix(".schema.json"))
    target: Any = schema
    for key in path.split("/"):
        target = target[key]
    return {**resolve(target, schema), **{k: v for k, v in entry.items() if k != "$ref"}}


def list_keys(
    entry: Mapping[str, Any], schema: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, ...]]:
    """Yield path, type and description of every key below a schema."""
    for key, value in entry.get("properties", {}).items():
        inner = resolve(value, schema)
        name = f"{path}{key}"
        yield f"`{name}`", describe_type(inner, schema), escape(inner.get("description", ""))
        yield from list_keys(inner, schema, f"{name}.")
        items = resolve(inner.get("items", {}), schema)
        yield from list_keys(items, schema, f"{name}[].")
        extra = inner.get("additionalProperties")
        if isinstance(extra, dict):
            yield from list_keys(resolve(extra, schema), schema, f"{name}.NAME.")


def describe_type(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return the type of a value in words: "number", "one of `a`, `b`", "list of text"."""
    words = {
        "string": "text", "integer": "whole number", "boolean": "true or false",
        "object": "table", "array": "list",
    }  # fmt: skip
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return "one of " + ", ".join(f"`{value}`" for value in entry["enum"])
    for key in ("anyOf", "oneOf"):
        if key in entry:
            forms = (describe_type(resolve(form, schema), schema) for form in entry[key])
            return " or ".join(dict.fromkeys(forms))
    kind = entry.get("type", "")
    if kind == "array" and "items" in entry:
        inner = describe_type(resolve(entry["items"], schema), schema)
        if inner.startswith("one of "):
            return inner.replace("one of", "list from", 1)
        # "list of whole numbers", but "list of text" and "list of whole number or text"
        plural = inner if inner == "text" or " or " in inner else f"{inner}s"
        return f"list of {plural}" if inner else "list"
    return words.get(kind, kind)


def write_schema(name: str, title: str, introduction: str) -> str:
    """Return the page of a TOML document."""
    schema = read_schema(name)
    keys = table(("key", "value", "meaning"), list_keys(schema, schema))
    return "\n".join((NOTE, f"# {title}\n", introduction, keys))


MANIFEST = """A manifest holds the settings of a model's build in one TOML file:
`edgepack build MODEL --target T --manifest FILE`. Flags override it, and it overrides the profile.
Relative paths start at the manifest's folder. `edgepack init MODEL` writes one,
`edgepack manifest check FILE` names every fault at once, and `edgepack manifest schema` prints the
JSON Schema behind this page. `name[]` stands for each entry of a list.
"""
TARGET = """A target profile says which device, which engine, which chain and which gates.
`edgepack targets show cpu-fbgemm` prints one. A profile of your own starts from another with
`extends = "cpu-fbgemm"` and is passed as a file, `--target ./mine.toml`;
`edgepack targets check mine.toml` names every fault at once.
"""


# -- error codes


class Raised(NamedTuple):
    """Error that some line of the code raises."""

    code: str
    kind: str
    message: str


# Codes that the sources choose from a table or write as a pattern; NAME is that of a pass.
OTHERS = (
    Raised("NAME-layers", "ChainError", "the layers of a pass's option do not exist"),
    Raised("NAME-option", "ChainError", "an option of the pass is not valid"),
    Raised("device-disk-full", "DeviceError", "the device has no space for the file"),
    Raised("device-link-lost", "DeviceError", "the link to the device was lost"),
    Raised("device-path", "DeviceError", "the device has no such path for the file"),
    Raised("disk-full", "HostError", "the disk is full"),
    Raised("manifest-invalid", "SpecError", "the file is not a valid manifest"),
    Raised("target-invalid", "SpecError", "the file is not a valid target profile"),
    Raised("transfer-cut", "DeviceError", "the transfer was cut off"),
    Raised("wheels-python", "DeviceError", "the bundle's wheels are for another Python"),
    Raised("half-opset", "ChainError", "the graph's opset is too old for the pass"),
    Raised("samples-training-judges", "DataError", "training samples are also evaluation samples"),
    Raised("engine-other", "DeviceError", "the sealed engine is for another bundle or device"),
)


class Maker(NamedTuple):
    """Function that makes an error: the class of the error, and its message."""

    kind: str
    message: str


def list_errors() -> list[Raised]:
    """Return every error code in the sources, with its class and its first message."""
    errors = {error.code: error for error in OTHERS}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        makers = find_makers(tree)
        for node in ast.walk(tree):
            for raised in read_errors(node, makers):
                known = errors.get(raised.code)
                if known is None or not known.message:
                    errors[raised.code] = raised
    return sorted(errors.values())


def find_makers(tree: ast.Module) -> dict[str, Maker]:
    """Return the functions of a module that make an error.

    For example `def _refuse(why: str, code: str = "bundle-malformed") -> BundleError`.
    """
    makers = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            kind = ast.unparse(node.returns).strip("'\"")
            if kind.endswith("Error"):
                messages = [
                    read_message(call.args[1])
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call) and len(call.args) > 1
                ]
                makers[node.name] = Maker(kind, next(filter(None, messages), ""))
    return makers


def read_errors(node: ast.AST, makers: Mapping[str, Maker]) -> Iterator[Raised]:
    """Yield the errors of a call such as `DataError("code", "message")`, or a maker's default."""
    if isinstance(node, ast.FunctionDef) and node.name in makers:
        for argument, default in zip(node.args.args[::-1], node.args.defaults[::-1], strict=False):
            if argument.arg == "code" and is_code(default):
                yield Raised(ast.literal_eval(default), *makers[node.name])
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    maker = makers.get(name, Maker(name, ""))
    if not maker.kind.endswith("Error"):
        return
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    for position, argument in enumerate(arguments):
        if is_code(argument):
            following = arguments[position + 1 : position + 2]
            message = next(map(read_message, following), "")
            yield Raised(ast.literal_eval(argument), maker.kind, message or maker.message)


def is_code(node: ast.expr) -> bool:
    """Return True for the literal of an error code."""
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and CODE.match(node.value) is not None
    )


def read_message(node: ast.expr) -> str:
    """Return the text of a message, with its values as names in capitals."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        else:
            parts.append(name_value(value))
    return "".join(parts)


def name_value(value: ast.expr) -> str:
    """Return the name of a value in a message, in capitals; "..." for one without a name.

    The conversion and the format are no part of the name: `{step.name!r}` is NAME.
    """
    if isinstance(value, ast.FormattedValue):
        value = value.value
    words = re.findall(r"[A-Za-z]+", ast.unparse(value))
    if not words or words[-1] == "self":
        return "..."
    return str(words[-1].upper())


ERRORS = """Every error has a stable code: on standard error as `error[CODE]: what`, and with
`--json` as `{"error": {"code": ..., "what": ..., "why": ..., "hint": ...}}`. Scripts may match on
the code. Each message here is the first that carries the code; names in capitals stand for values.
All end with exit code 2, except those of `GateError`, which end with 1.
"""


def summarize_classes() -> dict[str, str]:
    """Return the first line of the docstring of every error class, by name."""
    summaries = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                docstring = ast.get_docstring(node) or ""
                summaries[node.name] = docstring.partition("\n")[0]
    return summaries


def write_errors() -> str:
    """Return the page of error codes, by class."""
    parts = [NOTE, "# Error codes\n", ERRORS]
    summaries = summarize_classes()
    raised = list_errors()
    for kind in sorted({error.kind for error in raised}):
        parts.append(f"## {kind}\n\n{summaries[kind]}\n")
        rows = ((f"`{e.code}`", escape(e.message)) for e in raised if e.kind == kind)
        parts.append(table(("code", "message"), rows))
    return "\n".join(parts)


def write_pages() -> dict[str, str]:
    """Return every generated page by file name."""
    return {
        "cli.md": write_command_line(),
        "passes.md": write_passes(),
        "manifest.md": write_schema("manifest", "Manifest", MANIFEST),
        "target-profile.md": write_schema("target", "Target profile", TARGET),
        "errors.md": write_errors(),
    }


def main() -> None:
    """Write the pages, and name those that changed."""
    for name, text in write_pages().items():
        path = PAGES / name
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
