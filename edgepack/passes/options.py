"""Options of passes: their common base class and the checks of their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from edgepack.errors import ChainError
from edgepack.spec.suggestions import did_you_mean


class PassOptions:
    """Base class of the options of a pass, each of which is a frozen dataclass over it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the inputs that the pass needs with these options.

        They are some of "calibration", "training", "gates", and names of later passes, whose
        options the pass reads.
        """
        return ()

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """Return the user's functions that the options name; factories with their arguments."""
        return ()

    @property
    def repairs(self) -> bool:
        """Return True if layers may be returned to float when a gate fails (`PartialPass`)."""
        return False

    @property
    def multiplies_integers(self) -> bool:
        """Return True if the device multiplies integers after the pass."""
        return False

    @property
    def may_saturate(self) -> bool:
        """Return True if sums of products saturate on x86 CPUs without VNNI after the pass."""
        return False

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Return the reason for which the pass cannot follow the others; "" if it can.

        Args:
            earlier: name and options of every pass before it, in order.
        """
        return ""

    def unmet(self, later: Sequence[tuple[str, PassOptions]]) -> str:
        """Return the reason for which the pass cannot precede the others; "" if it can.

        Args:
            later: name and options of every pass after it, in order.
        """
        return ""


Options = TypeVar("Options", bound=PassOptions)


def read_options(name: str, kind: type[Options], options: Mapping[str, object]) -> Options:
    """Return the options of a pass as its dataclass.

    Raises ChainError: `chain-option` for an unknown option, and the dataclass's own error for an
    invalid value.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in options:
        if key not in names:
            raise ChainError(
                "chain-option",
                f"the pass {name!r} has no option {key!r}",
                why=f"the chain or the manifest sets it{did_you_mean(key, names)}",
                hint=f"--chain {name}:{min(names)}=..., or its table in the manifest",
            )
    return kind(**options)


def make_option_error(
    name: str, option: str, value: object, why: str, hint: str = ""
) -> ChainError:
    """Return the error for an invalid value of an option; its code is `NAME-option`."""
    return ChainError(
        f"{name}-option",
        f"the option {option} of {name} cannot be {value!r}",
        why=why,
        hint=hint or "remove it to use the default",
    )


def check_number(
    name: str,
    option: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
) -> None:
    """Raise unless the value is a number from `low` to `high`; `whole` accepts integers only."""
    kinds: tuple[type, ...] = (int, float)
    kind = "a number"
    if whole:
        kinds, kind = (int,), "a whole number"
    # Python counts a bool as an int, the reader of a manifest does not; NaN fails any comparison.
    valid = isinstance(value, (int, float)) and isinstance(value, kinds) and low <= value <= high
    if isinstance(value, bool) or not valid:
        bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise make_option_error(name, option, value, f"it must be {kind} {bounds}")


def check_flag(name: str, option: str, value: object) -> None:
    """Raise unless the value is true or false."""
    if not isinstance(value, bool):
        raise make_option_error(name, option, value, "it must be true or false")


def check_text(name: str, option: str, value: object) -> None:
    """Raise unless the value is text."""
    if not isinstance(value, str):
        raise make_option_error(name, option, value, "it must be text")


def check_choice(name: str, option: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless the value is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise make_option_error(
            name,
            option,
            value,
            f"it is not one of its values{did_you_mean(str(value), choices)}",
            "one of " + ", ".join(choices),
        )


def split_values(value: object) -> tuple[object, ...]:
    """Return an option's values: "a,b" on the command line, a TOML list, or a single value."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)
