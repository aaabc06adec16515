"""The optimization chain: passes in order, each model in and `PassResult` out.

A chain is written as `pass:option=value:option=value,pass,...`. Passes work in one of two domains:

module   on the torch module, before it is exported: prune, factorize, distill. `distill` is also
         what trains a pruned or factorized network again, with the original as its teacher.
graph    on the ONNX graph, after that: quantize, half.

To add a pass: a file (or a folder) of its own here, a line in `PASSES`, and its tests; a line in
`spec.document.PASS_TABLES` and in both schemas gives it a table in profiles and manifests. The file
has the options, a frozen dataclass over `options.PassOptions` that refuses in `__post_init__` what
it cannot take, and

    graph    apply(model: onnx.ModelProto, samples, options, progress) -> PassResult[ModelProto]
    module   apply(module: nn.Module, options, context) -> ModuleResult
             replay(module: nn.Module, recipe, context) -> nn.Module

A pass on the graph that can be applied in part, layer by layer, has `make_trials` beside it, and an
option that `repairs` tells of: where a gate is missed, `stages.repair` takes it back that far.

A module pass tells the structure that it made as a recipe, JSON from which `replay` makes the same
structure out of the same module again; weights travel beside it. `chain.module` says it all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from edgepack.chain.options import PassOptions, read
from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean

Domain = Literal["module", "graph"]


@dataclass(frozen=True)
class Pass:
    """One pass of the chain, imported when it is used.

    Attributes:
        domain: what it works on.
        place: the Python module that it is in.
        options: the dataclass of its options there.
        function: what applies it there; `replay` stands beside that of a module pass.
    """

    domain: Domain
    place: str
    options: str
    function: str

    def apply(self, *args: Any) -> Any:
        """Apply it; the arguments are those of its domain."""
        return getattr(import_module(self.place), self.function)(*args)

    def trials(self, *args: Any) -> Any:
        """What applies it in part, for a pass on the graph whose options say that it repairs."""
        return import_module(self.place).make_trials(*args)

    def replay(self, *args: Any) -> Any:
        """Make the structure of an earlier run again."""
        return import_module(self.place).replay(*args)


# In the order in which they make sense: structure first, recovery, then the graph's arithmetic.
PASSES: dict[str, Pass] = {
    "prune": Pass("module", "edgepack.chain.prune", "PruneOptions", "prune"),
    "factorize": Pass("module", "edgepack.chain.factorize", "FactorizeOptions", "factorize"),
    "distill": Pass("module", "edgepack.chain.distill", "DistillOptions", "distill"),
    "quantize": Pass("graph", "edgepack.chain.quantize", "QuantizeOptions", "quantize"),
    "half": Pass("graph", "edgepack.chain.half", "HalfOptions", "half"),
}


@dataclass(frozen=True)
class Step:
    """One pass of a chain, with the options that were written for it."""

    name: str
    options: Mapping[str, Any]

    @property
    def known(self) -> Pass:
        """The pass."""
        return PASSES[self.name]

    def read(self) -> Any:
        """Its options as their dataclass. Raises ChainError for what the pass cannot take."""
        kind = getattr(import_module(self.known.place), self.known.options)
        return read(self.name, kind, self.options)


def of_domain(domain: Domain, steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps that work on the module, or on the graph."""
    return tuple(step for step in steps if step.known.domain == domain)


def needs(steps: Iterable[Step], role: str) -> tuple[str, ...]:
    """Names of the passes that need samples of a role, "calibration" or "training"."""
    return tuple(step.name for step in steps if role in step.read().needs)


def parse(chain: str) -> tuple[Step, ...]:
    """Read a chain. "" and "none" are the empty chain. Raises ChainError for what is unknown."""
    if chain.strip() in ("", "none"):
        return ()
    # No pass begins with a digit: what does belongs to a list, as in distill:layers=0,2,4.
    return tuple(_step(text.strip()) for text in re.split(r",(?!\s*\d)", chain))


def check(steps: Iterable[Step]) -> None:
    """Raise ChainError for options, an order or combinations that cannot be, before anything runs.

    The codes are `chain-option` and those of the passes' own options, `chain-order` where a pass
    on the module stands after one on the graph, or quantize after half, `chain-conflict`.
    """
    earlier: list[tuple[str, PassOptions]] = []
    for step in steps:
        options: PassOptions = step.read()
        graphs = [name for name, _ in earlier if PASSES[name].domain == "graph"]
        if graphs and step.known.domain == "module":
            raise ChainError(
                "chain-order",
                f"{step.name} cannot stand after {graphs[-1]}",
                why=f"{step.name} works on the torch module, {graphs[-1]} on the exported graph",
                hint=f"put {step.name} before it: --chain {step.name},{graphs[0]}",
            )
        known = list(PASSES)
        later = [name for name in graphs if known.index(name) > known.index(step.name)]
        if later:
            raise ChainError(
                "chain-order",
                f"{step.name} cannot stand after {later[-1]}",
                why=f"{step.name} reads float32, and {later[-1]} leaves less of it",
                hint=f"put {step.name} before it: --chain {step.name},{later[0]}",
            )
        reason = options.conflict(earlier)
        if step.name in graphs:
            reason = "what it would change was changed already"
        if reason:
            raise ChainError(
                "chain-conflict",
                f"{step.name} cannot stand after {', '.join(name for name, _ in earlier)}",
                why=reason,
                hint="leave one of them out, or change their order",
            )
        earlier.append((step.name, options))
    for index, (name, options) in enumerate(earlier):
        reason = options.unmet(earlier[index + 1 :])
        if reason:
            raise ChainError(
                "chain-conflict",
                f"{name} does not fit what comes after it",
                why=reason,
                hint="put quantize behind it, and nothing between them that trains or cuts",
            )


def _step(text: str) -> Step:
    name, *written = text.split(":")
    if name not in PASSES:
        raise ChainError(
            "chain-unknown-pass",
            f"there is no pass named {name!r}",
            why=f"the chain says {text!r}{did_you_mean(name, PASSES)}",
            hint="--chain quantize:calibrator=mse, or --chain none",
        )
    options: dict[str, str] = {}
    for item in written:
        key, equals, text = item.partition("=")
        if not equals and options and (item.isidentifier() or item.isdecimal()):
            # distill:student=nets.py:small and prune:pattern=2:4, split at their own colon.
            last = next(reversed(options))
            options[last] += f":{item}"
            continue
        if not equals or not key or key.replace("-", "_") in options:
            raise ChainError(
                "chain-option",
                f"an option of the pass {name!r} cannot be understood",
                why=f"{item!r} is not key=value, or stands twice",
                hint="--chain quantize:calibrator=mse:range=full",
            )
        options[key.replace("-", "_")] = text
    return Step(name, {key: value(text) for key, text in options.items()})


def value(text: str) -> Any:
    """An option as it is written: true, false, a number, or a word."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
