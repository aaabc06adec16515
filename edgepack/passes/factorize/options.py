"""Options of `factorize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepack.passes.options import (
    PassOptions,
    check_choice,
    check_number,
    check_text,
    make_option_error,
    split_values,
)
from edgepack.passes.prune.options import PruneOptions

METHODS = ("activation", "svd")
BOUNDS = ("parameters", "energy", "snr_db")
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class FactorizeOptions(PassOptions):
    """Options of `factorize`. At most one of parameters, energy and snr_db determines the ranks.

    Attributes:
        parameters: share of the parameters to retain, over all layers that can be factorized; it is
            distributed to minimize the error. 0.5 if neither energy nor snr_db is set.
        energy: share of each layer's energy to retain: of the variance of its output (activation),
            or of its squared singular values (svd).
        snr_db: smallest ratio, in dB, of the variance of each layer's output on the calibration
            samples to its error. With the method activation 20 dB is energy = 0.99.
        method: "activation", the principal directions of the layer's outputs on the calibration
            samples; "svd", those of its weights alone.
        round_to: ranks are multiples of this, for the kernels.
        include: layer name patterns; other layers are skipped. Empty means every layer.
        exclude: layer name patterns of layers to skip.
        batch_size: calibration samples per batch.
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
        check_number(self.NAME, "parameters", self.parameters, 0, 0.99)
        check_number(self.NAME, "energy", self.energy, 0, 0.999999)
        check_number(self.NAME, "snr_db", self.snr_db, 0, 100)
        check_choice(self.NAME, "method", self.method, METHODS)
        check_number(self.NAME, "round_to", self.round_to, 1, 1024, whole=True)
        check_number(self.NAME, "batch_size", self.batch_size, 1, whole=True)
        for option in ("include", "exclude"):
            patterns = split_values(getattr(self, option))
            for pattern in patterns:
                check_text(self.NAME, option, pattern)
            object.__setattr__(self, option, patterns)
        bounds = [option for option in BOUNDS if getattr(self, option)]
        if len(bounds) > 1:
            raise make_option_error(
                self.NAME,
                bounds[1],
                getattr(self, bounds[1]),
                f"{bounds[0]} already determines the ranks",
                "remove one of them",
            )
        if not bounds:
            object.__setattr__(self, "parameters", DEFAULT_SHARE)

    @property
    def measured(self) -> bool:
        """Return True if activations are measured on the calibration samples."""
        return self.method == "activation" or self.snr_db > 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Return "calibration" unless the ranks depend on the weights alone."""
        if self.measured:
            return ("calibration",)
        return ()

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Reject a second factorization, and one that would undo the zeros of prune."""
        for name, options in earlier:
            if name == self.NAME:
                return "the layers are already factorized"
            if isinstance(options, PruneOptions) and options.zeros:
                return (
                    f"{name}'s zeros would be lost, since the factors of sparse weights are dense"
                )
        return ""
