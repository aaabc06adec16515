"""What the pass `half` can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.chain.options import PassOptions, number, several, wrong

# Twice two bits: what calibration did not see may be four times what it saw.
MARGIN = 4.0


@dataclass(frozen=True)
class HalfOptions(PassOptions):
    """The options of `half`.

    Attributes:
        margin: how many times larger than on the samples a value may become on the device. What
            was seen must stay below 65504 / margin.
        keep: names of nodes that stay float32.
        batch_size: samples that are run at once.
    """

    margin: float = MARGIN
    keep: tuple[str, ...] = ()
    batch_size: int = 4

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples that every range is measured on."""
        return ("calibration",)

    def __post_init__(self) -> None:
        names = several(self.keep)
        for name in names:
            if not isinstance(name, str):
                raise wrong("half", "keep", self.keep, "it takes names of nodes")
        object.__setattr__(self, "keep", names)
        number("half", "margin", self.margin, 1.0, 65504.0)
        number("half", "batch_size", self.batch_size, 1, whole=True)

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Integers behind Q/DQ pairs are left alone; of others it would change the arithmetic."""
        for _, options in earlier:
            mode = getattr(options, "mode", "static")
            if mode != "static":
                return f"quantize:mode={mode} makes layers that read and give float32"
        return ""
