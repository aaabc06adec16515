"""The optimization chain: passes in order, each model in and `PassResult` out.

A chain is written as `pass:option=value:option=value,pass,...`. Adding a pass is a file, a line
in the table below, and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress
from edgepack.spec.document import did_you_mean


def _quantize_options(options: Mapping[str, Any]) -> Any:
    from edgepack.chain.quantize import QuantizeOptions

    known = {field.name for field in fields(QuantizeOptions)}
    for key in options:
        if key not in known:
            raise ChainError(
                "chain-option",
                f"the pass 'quantize' has no option {key!r}",
                why=f"it was asked for{did_you_mean(key, known)}",
                hint="edgepack targets show cpu-fbgemm shows those of a profile",
            )
    return QuantizeOptions(**options)


def _quantize(
    model: Any, samples: Samples | None, options: Mapping[str, Any], progress: Progress
) -> PassResult[Any]:
    from edgepack.chain.quantize import quantize

    chosen = _quantize_options(options)
    if samples is None:
        raise ChainError(
            "calibration-missing",
            "static quantization needs calibration samples",
            why="it measures the range of every activation on them, and none were given",
            hint="--calibration PATH, 100 or more samples as the device will see them\n"
            "(--random-calibration builds without, and marks the report as not proven)",
        )
    return quantize(model, samples, chosen, progress)


@dataclass(frozen=True)
class Pass:
    """One pass of the chain.

    Attributes:
        apply: (ONNX model, calibration samples, options, progress) to PassResult.
        check: raises ChainError for options that the pass does not have.
        samples: whether its result depends on the calibration samples.
    """

    apply: Callable[..., PassResult[Any]]
    check: Callable[[Mapping[str, Any]], Any]
    samples: bool


PASSES: dict[str, Pass] = {
    "quantize": Pass(_quantize, _quantize_options, samples=True),
}


@dataclass(frozen=True)
class Step:
    """One pass of a chain, with the options that were written for it."""

    name: str
    options: Mapping[str, Any]


def parse(chain: str) -> tuple[Step, ...]:
    """Read a chain. "" and "none" are the empty chain. Raises ChainError for what is unknown."""
    if chain.strip() in ("", "none"):
        return ()
    return tuple(_step(text.strip()) for text in chain.split(","))


def check(step: Step) -> None:
    """Raise ChainError for options that the pass does not have, before anything runs."""
    PASSES[step.name].check(step.options)


def _step(text: str) -> Step:
    name, *written = text.split(":")
    if name not in PASSES:
        raise ChainError(
            "chain-unknown-pass",
            f"there is no pass named {name!r}",
            why=f"the chain says {text!r}{did_you_mean(name, PASSES)}",
            hint="--chain quantize:calibrator=mse, or --chain none",
        )
    options: dict[str, Any] = {}
    for item in written:
        key, equals, text = item.partition("=")
        if not equals or not key or key in options:
            raise ChainError(
                "chain-option",
                f"an option of the pass {name!r} cannot be understood",
                why=f"{item!r} is not key=value, or stands twice",
                hint="--chain quantize:calibrator=mse:range=full",
            )
        options[key.replace("-", "_")] = value(text)
    return Step(name, options)


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
