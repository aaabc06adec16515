"""Command `edgepack passes`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgepack.cli.boundary import boundary, print_text_or_json
from edgepack.cli.complete import complete_pass
from edgepack.cli.options import as_json

if TYPE_CHECKING:
    from edgepack.passes.catalogue import Entry, Option


@click.command(short_help="List the passes, or the options of one.")
@click.argument("name", required=False, metavar="[PASS]", shell_complete=complete_pass)
@as_json
@boundary
def passes(name: str | None, as_json: bool) -> None:
    """List the passes of a chain, or the options of one PASS.

    An option is set in a chain, `--chain quantize:calibrator=mse`, or in a table of the same name
    in a manifest.
    """
    from edgepack.passes import catalogue

    if name is None:
        entries = catalogue.list_entries()
        document, lines = [], []
        for entry in entries:
            document.append(asdict(entry))
            lines.append(f"{entry.name:<10} {entry.domain:<7} {_lower_first(entry.summary)}")
        print_text_or_json(as_json, document, *lines)
        return
    entry = catalogue.describe_pass(name)
    print_text_or_json(as_json, asdict(entry), *_format_entry(entry))


def _format_entry(entry: Entry) -> list[str]:
    """Return the lines of one pass: its summary, then each option with its description."""
    # One row of figures per option, and its description indented below.
    lines = [f"{entry.name}: {_lower_first(entry.summary)}", ""]
    lines.append(f"{'option':<23} {'type':<21} {'default':<10} values")
    for option in entry.options:
        lines += _format_option(option)
    return lines


def _format_option(option: Option) -> list[str]:
    # A default that the pass chooses is described in the text.
    default = option.default or "-"
    row = f"{option.name:<23} {option.type:<21} {default:<10} {option.values}"
    text = textwrap.wrap(_upper_first(option.description), width=92, initial_indent=" " * 4,
                         subsequent_indent=" " * 4)  # fmt: skip
    return [row.rstrip(), *text]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
