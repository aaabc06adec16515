"""Chains: parse one, check it, and select from it.

A chain is written as `pass:option=value:option=value,pass,...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from edgepack.errors import ChainError
from edgepack.passes.options import PassOptions, read_options
from edgepack.passes.protocol import AnyGraphPass, AnyModulePass, AnyPass, Domain
from edgepack.passes.table import PASSES, find_pass, find_plugin, list_names
from edgepack.plugins import Plugin
from edgepack.spec.suggestions import did_you_mean

Value = bool | int | float | str


@dataclass(frozen=True)
class Step:
    """Name of a pass in a chain, with the options written for it."""

    name: str
    options: Mapping[str, object]

    @property
    def definition(self) -> AnyPass:
        """Return the pass. Raises PluginError if it is a plug-in's and cannot be used."""
        return find_pass(self.name)

    @property
    def plugin(self) -> Plugin | None:
        """Return the plug-in that defines the pass; None for one of edgepack's own."""
        return find_plugin(self.name)

    @property
    def graph_pass(self) -> AnyGraphPass:
        """Return the pass of a step on the graph."""
        return cast("AnyGraphPass", self.definition)

    @property
    def module_pass(self) -> AnyModulePass:
        """Return the pass of a step on the module."""
        return cast("AnyModulePass", self.definition)

    def key_parts(self) -> dict[str, object]:
        """Return the parts of the cache's keys that the step decides: options, a plug-in's code."""
        parts: dict[str, object] = {"options": dict(self.options)}
        if self.plugin:
            parts["plugin"] = self.plugin.digest()
        return parts

    def read(self) -> PassOptions:
        """Return the options as the pass's dataclass. Raises ChainError for invalid ones."""
        options: PassOptions = read_options(self.name, self.definition.options, self.options)
        return options


def select_domain(domain: Domain, steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps that work on the module, or on the graph."""
    return tuple(step for step in steps if step.definition.domain == domain)


def list_passes_needing(role: str, steps: Iterable[Step]) -> tuple[str, ...]:
    """Return the passes that need samples of a role, "calibration" or "training"."""
    return tuple(step.name for step in steps if role in step.read().needs)


def name_precision(steps: Iterable[Step]) -> str:
    """Name the precision after these passes: "int8", "int4 weights+fp16" or "fp32"."""
    # The later pass is named last: for "quantize,half" half converts the layers that quantize left
    # in float, which gives "int8+fp16".
    precisions = []
    for step in steps:
        precision = step.definition.precision(step.read())
        if precision:
            precisions.append(precision)
    return "+".join(precisions) or "fp32"


def parse_chain(chain: str) -> tuple[Step, ...]:
    """Parse a chain; "" and "none" are the empty chain. Raises ChainError for a syntax error.

    For example "prune:structured=0.3,quantize" has two steps, ("prune", {"structured": 0.3}) and
    ("quantize", {}).
    """
    if chain.strip() in ("", "none"):
        return ()
    # No pass name begins with a digit, so a comma before a digit continues a list of values:
    # "distill:layers=0,2,4,quantize" splits into "distill:layers=0,2,4" and "quantize".
    texts = [text.strip() for text in re.split(r",(?!\s*\d)", chain)]
    for text in texts:
        _check_comma(text, texts)
    return tuple(map(_parse_step, texts))


def _check_comma(text: str, texts: list[str]) -> None:
    """Refuse an option that stands where a pass should, after a comma instead of a colon."""
    # "quantize:calibrator=percentile,percentile=99.9" is corrected to
    # "quantize:calibrator=percentile:percentile=99.9".
    if not _is_option(text):
        return
    hint = "an option follows its pass: --chain quantize:calibrator=mse"
    if not _is_option(texts[0]):
        corrected = texts[0]
        for following in texts[1:]:
            corrected += f":{following}" if _is_option(following) else f",{following}"
        hint = f"options of one pass are separated by ':': --chain {corrected}"
    raise ChainError(
        "chain-unknown-pass",
        f"there is no pass named {text!r}",
        why=f"the chain contains {text!r}, which is an option and not a pass",
        hint=hint,
    )


def _is_option(text: str) -> bool:
    return "=" in text.partition(":")[0]


def check_chain(steps: Iterable[Step]) -> None:
    """Raise ChainError for invalid options, order or combinations, before anything runs.

    The codes are `chain-option` and those of the passes' own options, `chain-order` for a module
    pass after a graph pass or for graph passes in the wrong order, and `chain-conflict`.
    """
    earlier: list[tuple[str, PassOptions]] = []
    for step in steps:
        options: PassOptions = step.read()
        graphs = [name for name, _ in earlier if find_pass(name).domain == "graph"]
        _check_order(step, graphs)
        # Conflicts between particular options are the business of the pass itself.
        reason = options.conflict(earlier)
        if step.name in graphs:
            reason = f"{step.name} was already applied to the graph"
        if reason:
            raise ChainError(
                "chain-conflict",
                f"{step.name} cannot follow {', '.join(name for name, _ in earlier)}",
                why=reason,
                hint="remove one of them, or change their order",
            )
        earlier.append((step.name, options))
    # Some passes require a later one, such as distill:aware=true a quantize.
    for index, (name, options) in enumerate(earlier):
        reason = options.unmet(earlier[index + 1 :])
        if reason:
            raise ChainError(
                "chain-conflict",
                f"{name} is incompatible with the passes after it",
                why=reason,
                hint="put quantize after it, with no pass between them that trains or cuts",
            )


def _check_order(step: Step, graphs: list[str]) -> None:
    """Refuse a step that may not follow the earlier passes on the graph."""
    if graphs and step.definition.domain == "module":
        raise ChainError(
            "chain-order",
            f"{step.name} cannot follow {graphs[-1]}",
            why=f"{step.name} works on the torch module, {graphs[-1]} on the exported graph",
            hint=f"put {step.name} before it: --chain {step.name},{graphs[0]}",
        )
    # The table lists edgepack's graph passes in the order in which they may run. A plug-in states
    # in `conflict` what it cannot follow.
    order = list(PASSES)
    if step.name not in order:
        return
    # For quantize this is (half,): half,quantize is refused, and quantize,half is not.
    follows = order[order.index(step.name) + 1 :]
    later = [name for name in graphs if name in follows]
    if later:
        raise ChainError(
            "chain-order",
            f"{step.name} cannot follow {later[-1]}",
            why=f"{step.name} reads float32 tensors, and {later[-1]} converts some of them",
            hint=f"put {step.name} before it: --chain {step.name},{later[0]}",
        )


def _parse_step(text: str) -> Step:
    """Parse one pass, such as "quantize:calibrator=mse:range=full"."""
    name, *items = text.split(":")
    names = list_names()
    if name not in names:
        raise ChainError(
            "chain-unknown-pass",
            f"there is no pass named {name!r}",
            why=f"the chain contains {text!r}{did_you_mean(name, names)}",
            hint="--chain quantize:calibrator=mse, or --chain none",
        )
    # "calibrator=mse" and "batch-size=4" become {"calibrator": "mse", "batch_size": "4"}.
    options: dict[str, str] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator and options and (item.isidentifier() or item.isdecimal()):
            # The value contains a colon, as in distill:student=nets.py:small or
            # prune:pattern=2:4: append the part after it to the last option.
            last = next(reversed(options))
            options[last] += f":{item}"
            continue
        if not separator or not key or key.replace("-", "_") in options:
            raise ChainError(
                "chain-option",
                f"an option of the pass {name!r} cannot be parsed",
                why=f"{item!r} is not key=value, or is repeated",
                hint="--chain quantize:calibrator=mse:range=full",
            )
        options[key.replace("-", "_")] = text
    return Step(name, dict(zip(options, map(parse_value, options.values()), strict=True)))


def parse_value(text: str) -> Value:
    """Convert the text of an option to true, false, a number, or a string."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
