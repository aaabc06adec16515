"""The catalogue of passes: what it says of every option is true, and nothing is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import click
import pytest

from edgepack import passes
from edgepack.cli import cli
from edgepack.cli.complete import complete_chain, complete_target
from edgepack.errors import PluginError
from edgepack.passes import catalogue
from edgepack.passes.catalogue import Entry, Option
from edgepack.passes.options import PassOptions
from support.build_cases import ask, edgepack

ENTRIES = catalogue.list_entries()
OPTIONS = [(entry, option) for entry in ENTRIES for option in entry.options]


def name_of(value: Entry | Option) -> str:
    return value.name


@pytest.mark.parametrize(("entry", "option"), OPTIONS, ids=name_of)
def test_every_option_has_a_sentence(entry: Entry, option: Option) -> None:
    assert len(option.summary.split()) >= 3
    assert option.summary.endswith(".")
    assert option.description.startswith(option.summary)
    if option.type in ("number", "whole number"):
        assert option.values


def test_every_pass_and_every_option_is_listed() -> None:
    assert [entry.name for entry in ENTRIES] == list(passes.list_names())
    for entry in ENTRIES:
        assert entry.summary
        names = [field.name for field in fields(passes.find_pass(entry.name).options)]
        assert [option.name for option in entry.options] == names


def test_the_command_prints_text_or_a_document() -> None:
    done = edgepack("passes", "quantize")
    assert done.returncode == 0, done.stderr
    assert "minmax, percentile, entropy, mse" in done.stdout
    answer = ask("passes", "quantize")
    assert answer.document["options"][0]["name"] == "mode"
    assert [entry["name"] for entry in ask("passes").document] == list(passes.list_names())
    answer = ask("passes", "quantise")
    assert (answer.status, answer.code) == (2, "chain-unknown-pass")
    assert "did you mean 'quantize'" in answer.document["error"]["why"]


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("prune,qu", ["prune,quantize"]),
        ("quantize:ran", ["quantize:range="]),
        ("quantize:range=f", ["quantize:range=full"]),
        ("quantize:range=full:cali", ["quantize:range=full:calibrator="]),
        ("half:no=", []),
        ("none:x", []),
    ],
)
def test_a_chain_is_completed(text: str, completed: list[str]) -> None:
    context = click.Context(cli)
    items = complete_chain(context, click.Argument(["chain"]), text)
    assert [item.value for item in items] == completed


def test_targets_are_completed_by_name_or_as_files() -> None:
    context = click.Context(cli)
    items = complete_target(context, click.Argument(["target"]), "arm")
    assert [item.value for item in items] == ["arm-qnnpack"]
    (item,) = complete_target(context, click.Argument(["target"]), "./mine")
    assert item.type == "file"


@dataclass(frozen=True)
class Declared(PassOptions):
    """Options of every supported type, and one that no manifest can express."""

    rate: float = 0.5
    rates: "tuple[float, ...]" = ()
    ranks: "tuple[int, ...]" = ()
    names: tuple[str, ...] = ()
    exact: "bool | None" = None
    depth: int | None = None
    arguments: Mapping[str, Any] | None = None
    pair: tuple[int, str] = (1, "")


def test_the_type_of_an_option_is_read_from_a_string_or_a_type() -> None:
    types = {}
    for field in fields(Declared)[:-1]:
        types[field.name] = catalogue._describe_option("declared", Declared, field).type
    assert types == {
        "rate": "number",
        "rates": "list of numbers",
        "ranks": "list of whole numbers",
        "names": "list of text",
        "exact": "true or false",
        "depth": "whole number",
        "arguments": "table",
    }


def test_an_option_of_an_unknown_type_is_an_error() -> None:
    with pytest.raises(PluginError) as caught:
        catalogue._describe_option("declared", Declared, fields(Declared)[-1])
    assert caught.value.code == "plugin-option-type"
    assert "tuple[int, str]" in caught.value.why
