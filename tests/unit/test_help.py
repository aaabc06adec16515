"""Long lists of options are under headings, in `--help` and in the reference."""

from __future__ import annotations

import re

import click
import pytest

import edgepack
from edgepack.cli import cli
from edgepack.cli.sections import SectionedCommand

# More options than this under one heading are no longer read.
LONGEST = 16


@pytest.mark.parametrize("name", list(cli.commands))
def test_no_list_of_options_is_long(name: str) -> None:
    command = cli.commands[name]
    help_text = command.get_help(click.Context(command, info_name=name))
    sections = re.split(r"^\S.*:$", help_text, flags=re.MULTILINE)
    for section in sections:
        assert len(re.findall(r"^  -", section, re.MULTILINE)) <= LONGEST


def test_each_option_is_under_one_heading() -> None:
    command = cli.commands["build"]
    assert isinstance(command, SectionedCommand)
    context = click.Context(command, info_name="build")
    listed = [option.name for _, options in command.list_sections(context) for option in options]
    options = [p.name for p in command.get_params(context) if isinstance(p, click.Option)]
    assert sorted(map(str, listed)) == sorted(map(str, options))
    # An option that no heading names would be listed behind the messages.
    named = [name for names in command.sections.values() for name in names]
    assert set(listed) - set(named) <= {"help", "_click_default_help"}


@pytest.mark.parametrize(
    ("wrong", "right"), [("tarqet", "target"), ("evalution", "evaluation"), ("max_drp", "max_drop")]
)
def test_a_misspelt_option_of_build_in_python_is_recognised(wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=f"did you mean {right}"):
        edgepack.build("model.onnx", **{wrong: 1})  # type: ignore[arg-type]
