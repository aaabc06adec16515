"""The catalogue of passes: what it says of every option is true, and nothing is missing."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest

from edgepack import passes
from edgepack.cli import cli
from edgepack.cli.complete import complete_chain, complete_target
from edgepack.passes import catalogue
from edgepack.passes.catalogue import Entry, Option
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
