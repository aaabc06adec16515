"""Completion of arguments by the shell: targets, CPUs, passes and their options."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


def complete_target(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the name of a shipped profile, or the path of a profile."""
    from edgepack.spec import target

    # A shell offers files only if no profile matches, so that `--target c<TAB>` stays short.
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


def complete_metric(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the name of a metric, or the path of a file that defines one."""
    from edgepack.metrics.catalogue import list_names

    names = _filter(list_names(), text)
    if names:
        return names
    return [CompletionItem(text, type="file")]


def complete_chain(_: click.Context, __: click.Parameter, text: str) -> list[CompletionItem]:
    """Complete the pass, option or value that a chain ends with.

    "prune,qu" gives "prune,quantize", "quantize:ran" gives "quantize:range=", and
    "quantize:range=f" gives "quantize:range=full".
    """
    # "prune,quantize:range=f" is the chain "prune," and the step "quantize:range=f".
    chain, comma, step = text.rpartition(",")
    candidates = [chain + comma + candidate for candidate in _continue_step(step)]
    return _filter(candidates, text)


def _continue_step(step: str) -> list[str]:
    """Return the candidates for one pass of a chain, each with what is written of it already."""
    from edgepack.passes import catalogue, list_names

    # "quantize:mode=static:ran" has the start "quantize:mode=static" and completes ":range=".
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
