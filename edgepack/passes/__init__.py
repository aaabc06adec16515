"""Optimization chain: an ordered list of passes, each from a model to a `PassResult`.

A chain is written as `pass:option=value:option=value,pass,...`. Passes work in one of two domains:

module   on the torch module, before export: prune, factorize, distill. `distill` also retrains a
         pruned or factorized network, with the original as its teacher.
graph    on the exported ONNX graph: quantize, half.

To add a pass, write a file or a folder here, add a line to `PASSES`, and write its tests; a line in
`spec.document.PASS_TABLES` and in both schemas gives it a table in profiles and manifests. The file
defines the options, a frozen dataclass over `options.PassOptions` that rejects invalid values in
`__post_init__`, and

    graph    apply(model: onnx.ModelProto, samples, options, progress) -> PassResult[ModelProto]
    module   apply(module: nn.Module, options, context) -> ModuleResult
             replay(module: nn.Module, recipe, context) -> nn.Module

A graph pass that can be applied layer by layer also defines `make_trials`, and its options
override `repairs`: when a gate fails, `stages.repair` returns layers to float until it passes.

A module pass describes the structure that it produced as a recipe, JSON from which `replay`
rebuilds that structure out of the same module; weights are stored separately. See `passes.module`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from edgepack.errors import ChainError
from edgepack.passes.options import PassOptions, read
from edgepack.spec.document import did_you_mean

Domain = Literal["module", "graph"]


@dataclass(frozen=True)
class Pass:
    """Entry of the table of passes; the pass itself is imported on first use.

    Attributes:
        domain: the torch module or the ONNX graph.
        module_path: import path of the Python module that implements the pass.
        options: name of its options dataclass in that module.
        function: name of its apply function there; a module pass also defines `replay`.
    """

    domain: Domain
    module_path: str
    options: str
    function: str

    def apply(self, *args: Any) -> Any:
        """Apply the pass; the arguments are those of its domain."""
        return getattr(import_module(self.module_path), self.function)(*args)

    def trials(self, *args: Any) -> Any:
        """Return the trials of a graph pass whose options declare that it repairs."""
        return import_module(self.module_path).make_trials(*args)

    def replay(self, *args: Any) -> Any:
        """Rebuild the structure that an earlier run recorded."""
        return import_module(self.module_path).replay(*args)


# In the order in which they combine: structure first, then recovery, then the graph's arithmetic.
PASSES: dict[str, Pass] = {
    "prune": Pass("module", "edgepack.passes.prune", "PruneOptions", "prune"),
    "factorize": Pass("module", "edgepack.passes.factorize", "FactorizeOptions", "factorize"),
    "distill": Pass("module", "edgepack.passes.distill", "DistillOptions", "distill"),
    "quantize": Pass("graph", "edgepack.passes.quantize", "QuantizeOptions", "quantize"),
    "half": Pass("graph", "edgepack.passes.half", "HalfOptions", "half"),
}


@dataclass(frozen=True)
class Step:
    """Name of a pass in a chain, with the options written for it."""

    name: str
    options: Mapping[str, Any]

    @property
    def definition(self) -> Pass:
        """Return the table entry of the pass."""
        return PASSES[self.name]

    def read(self) -> Any:
        """Return the options as the pass's dataclass. Raises ChainError for invalid ones."""
        kind = getattr(import_module(self.definition.module_path), self.definition.options)
        return read(self.name, kind, self.options)


def of_domain(domain: Domain, steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps that work on the module, or on the graph."""
    return tuple(step for step in steps if step.definition.domain == domain)


def needs(steps: Iterable[Step], role: str) -> tuple[str, ...]:
    """Return the passes that need samples of a role, "calibration" or "training"."""
    return tuple(step.name for step in steps if role in step.read().needs)


def parse(chain: str) -> tuple[Step, ...]:
    """Parse a chain; "" and "none" are the empty chain. Raises ChainError for a syntax error.

    For example "prune:structured=0.3,quantize" has two steps, ("prune", {"structured": 0.3}) and
    ("quantize", {}).
    """
    if chain.strip() in ("", "none"):
        return ()
    # No pass name begins with a digit, so a comma before a digit continues a list of values:
    # "distill:layers=0,2,4,quantize" splits into "distill:layers=0,2,4" and "quantize".
    return tuple(_step(text.strip()) for text in re.split(r",(?!\s*\d)", chain))


def check(steps: Iterable[Step]) -> None:
    """Raise ChainError for invalid options, order or combinations, before anything runs.

    The codes are `chain-option` and those of the passes' own options, `chain-order` for a module
    pass after a graph pass or for quantize after half, and `chain-conflict`.
    """
    earlier: list[tuple[str, PassOptions]] = []
    for step in steps:
        options: PassOptions = step.read()
        graphs = [name for name, _ in earlier if PASSES[name].domain == "graph"]
        if graphs and step.definition.domain == "module":
            raise ChainError(
                "chain-order",
                f"{step.name} cannot follow {graphs[-1]}",
                why=f"{step.name} works on the torch module, {graphs[-1]} on the exported graph",
                hint=f"put {step.name} before it: --chain {step.name},{graphs[0]}",
            )
        # `PASSES` lists the graph passes in the order in which they may run.
        order = list(PASSES)
        later = [name for name in graphs if order.index(name) > order.index(step.name)]
        if later:
            raise ChainError(
                "chain-order",
                f"{step.name} cannot follow {later[-1]}",
                why=f"{step.name} reads float32 tensors, and {later[-1]} converts some of them",
                hint=f"put {step.name} before it: --chain {step.name},{later[0]}",
            )
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


def _step(text: str) -> Step:
    """Parse one pass, such as "quantize:calibrator=mse:range=full"."""
    name, *items = text.split(":")
    if name not in PASSES:
        raise ChainError(
            "chain-unknown-pass",
            f"there is no pass named {name!r}",
            why=f"the chain contains {text!r}{did_you_mean(name, PASSES)}",
            hint="--chain quantize:calibrator=mse, or --chain none",
        )
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
    return Step(name, {key: value(text) for key, text in options.items()})


def value(text: str) -> bool | float | str:
    """Convert the text of an option to true, false, a number, or a string."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
