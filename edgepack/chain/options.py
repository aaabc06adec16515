"""The options of passes: what all of them share, and how a mistake in one is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean


class PassOptions:
    """What the options of every pass answer. A pass's own are a frozen dataclass over this."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What the pass depends on with these options.

        Of "calibration", "training", "gates", and "quantize": the options of that pass later on.
        """
        return ()

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """The user's own functions that the options name; factories with their arguments."""
        return ()

    @property
    def repairs(self) -> bool:
        """Whether the pass gives up part of itself where a gate is missed (`Pass.trials`)."""
        return False

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Why the pass cannot stand after the others, as a sentence; "" where it can.

        Args:
            earlier: name and options of every pass before it, in order.
        """
        return ""

    def unmet(self, later: Sequence[tuple[str, PassOptions]]) -> str:
        """Why the pass cannot stand before the others, as a sentence; "" where it can.

        Args:
            later: name and options of every pass after it, in order.
        """
        return ""


Options = TypeVar("Options", bound=PassOptions)


def read(name: str, kind: type[Options], options: Mapping[str, object]) -> Options:
    """The options of a pass as its dataclass.

    Raises ChainError: `chain-option` for one that the pass does not have, and what the dataclass
    raises for a value that it cannot take.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise ChainError(
                "chain-option",
                f"the pass {name!r} has no option {key!r}",
                why=f"it was asked for{did_you_mean(key, known)}",
                hint=f"--chain {name}:{min(known)}=..., or its table in the manifest",
            )
    return kind(**options)


def wrong(name: str, option: str, value: object, why: str, hint: str = "") -> ChainError:
    """The error for a value that an option cannot take; its code is the pass's name and -option."""
    return ChainError(
        f"{name}-option",
        f"the option {option} of {name} cannot be {value!r}",
        why=why,
        hint=hint or "leave it out for the default",
    )


def number(
    name: str,
    option: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
) -> None:
    """Refuse what is no number from `low` to `high`; `whole` takes integers alone."""
    kinds = (int,) if whole else (int, float)
    # A bool is an int to Python, not to the reader of a manifest; and NaN passes no comparison.
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        upto = f"from {low:g} on" if high == math.inf else f"from {low:g} to {high:g}"
        raise wrong(name, option, value, f"it takes {kind} {upto}")


def flag(name: str, option: str, value: object) -> None:
    """Refuse what is not true or false."""
    if not isinstance(value, bool):
        raise wrong(name, option, value, "it takes true or false")


def text(name: str, option: str, value: object) -> None:
    """Refuse what is not text."""
    if not isinstance(value, str):
        raise wrong(name, option, value, "it takes a name")


def one_of(name: str, option: str, value: object, known: Iterable[str]) -> None:
    """Refuse what is none of the known words."""
    known = tuple(known)
    if value not in known:
        raise wrong(
            name,
            option,
            value,
            f"it was asked for{did_you_mean(str(value), known)}",
            "one of " + ", ".join(known),
        )


def several(value: object) -> tuple[object, ...]:
    """A list as it is written: "a,b" on the command line, a list in TOML, or a single thing."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
