"""Completion of arguments by the shell: targets, CPUs, passes and their options."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

# Part of a chain that completion continues: "quantize:range=f" of "prune,quantize:range=f".
_LAST_PASS = re.compile(r"[^,]*$")


def complete_target(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the name of a shipped profile, or the path of a profile."""
    from edgepack.spec import target

    names = _filter(target.shipped(), text)
    if names:
        return names
    return [CompletionItem(text, type="file")]


def complete_cpu(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the name of a CPU that can be emulated."""
    from edgepack.device import CPUS

    return _filter(CPUS, text)


def complete_pass(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the name of a pass."""
    from edgepack.passes import list_names

    return _filter(list_names(), text)


def complete_chain(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the pass, option or value that a chain ends with.

    "prune,qu" gives "prune,quantize", "quantize:ran" gives "quantize:range=", and
    "quantize:range=f" gives "quantize:range=full".
    """
    last = _LAST_PASS.search(text)
    position = last.start() if last else 0
    chain, step = text[:position], text[position:]
    return _filter((chain + candidate for candidate in _continue_step(step)), text)


def _continue_step(step: str) -> list[str]:
    """Return the candidates for one pass of a chain, each with what is written of it already."""
    from edgepack.passes import catalogue, list_names

    name, *settings = step.split(":")
    if not settings:
        return list(list_names())
    if name not in list_names():
        return []
    options = {option.name: option for option in catalogue.describe_pass(name).options}
    start = step.rpartition(":")[0]
    option, equals, _value = settings[-1].partition("=")
    if not equals:
        return [f"{start}:{candidate}=" for candidate in options]
    if option not in options:
        return []
    return [f"{start}:{option}={value}" for value in options[option].choices]


def _filter(candidates: Iterable[str], text: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in candidates if name.startswith(text)]
