"""What `factorize` can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepack.chain.options import PassOptions, number, one_of, several, text, wrong

METHODS = ("activation", "svd")
BOUNDS = ("parameters", "energy", "snr_db")
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class FactorizeOptions(PassOptions):
    """The options of `factorize`. One of parameters, energy and snr_db says how small ranks are.

    Attributes:
        parameters: the share of the parameters of all layers that can be factorized that stays,
            together: it goes where least is lost for it. 0.5 where nothing else is said.
        energy: the share of each layer's energy that must stay: of the variance of its output
            (activation), or of its squared singular values (svd).
        snr_db: how far, in dB, the variance of each layer's output on the calibration samples must
            lie above its error. With the method activation 20 dB is energy = 0.99.
        method: "activation", the directions that the layer's outputs vary along on the
            calibration samples; "svd", those of its weights alone.
        round_to: ranks are multiples of this, as kernels like channels to be.
        include: patterns of names of layers; others are left. All where none is given.
        exclude: patterns of names of layers that are left.
        batch_size: calibration samples that are run at once.
    """

    parameters: float = 0.0
    energy: float = 0.0
    snr_db: float = 0.0
    method: str = "activation"
    round_to: int = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    batch_size: int = 32

    NAME: ClassVar[str] = "factorize"

    def __post_init__(self) -> None:
        number(self.NAME, "parameters", self.parameters, 0, 0.99)
        number(self.NAME, "energy", self.energy, 0, 0.999999)
        number(self.NAME, "snr_db", self.snr_db, 0, 100)
        one_of(self.NAME, "method", self.method, METHODS)
        number(self.NAME, "round_to", self.round_to, 1, 1024, whole=True)
        number(self.NAME, "batch_size", self.batch_size, 1, whole=True)
        for option in ("include", "exclude"):
            patterns = several(getattr(self, option))
            for pattern in patterns:
                text(self.NAME, option, pattern)
            object.__setattr__(self, option, patterns)
        said = [option for option in BOUNDS if getattr(self, option)]
        if len(said) > 1:
            raise wrong(
                self.NAME,
                said[1],
                getattr(self, said[1]),
                f"{said[0]} says already how small the ranks are",
                "leave one of them out",
            )
        if not said:
            object.__setattr__(self, "parameters", DEFAULT_SHARE)

    @property
    def measured(self) -> bool:
        """Whether the layers' outputs are looked at."""
        return self.method == "activation" or self.snr_db > 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples for the layers' outputs, unless the weights alone decide."""
        return ("calibration",) if self.measured else ()

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Factors are not factorized again, and zeros do not outlive it."""
        for name, options in earlier:
            if name == self.NAME:
                return "what it would factorize was factorized already"
            if name == "prune" and getattr(options, "zeros", False):
                return "the zeros that prune makes would be lost: factors of zeros are none"
        return ""
