"""Options of the pass `half`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.passes.options import PassOptions, check_number, make_option_error, split_values
from edgepack.passes.quantize.options import QuantizeOptions

# On the device, values may be four times the largest that calibration measured.
MARGIN = 4.0


@dataclass(frozen=True)
class HalfOptions(PassOptions):
    """Options of `half`.

    Attributes:
        margin: factor by which a value on the device may exceed those on the samples. Measured
            values have to stay below 65504 / margin.
        keep: names of nodes that stay float32.
        batch_size: samples per run.
    """

    margin: float = MARGIN
    keep: tuple[str, ...] = ()
    batch_size: int = 4

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples on which ranges are measured."""
        return ("calibration",)

    def __post_init__(self) -> None:
        names = split_values(self.keep)
        for name in names:
            if not isinstance(name, str):
                raise make_option_error("half", "keep", self.keep, "expected names of nodes")
        object.__setattr__(self, "keep", names)
        check_number("half", "margin", self.margin, 1.0, 65504.0)
        check_number("half", "batch_size", self.batch_size, 1, whole=True)

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Return why `half` cannot follow the earlier passes; "" if it can.

        Integers in Q/DQ pairs are unaffected; in other modes fp16 would change the arithmetic.
        """
        for name, options in earlier:
            if isinstance(options, QuantizeOptions) and options.mode != "static":
                return f"{name}:mode={options.mode} makes layers with float32 inputs and outputs"
        return ""
