"""Options of `prune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepack.passes.options import (
    PassOptions,
    check_choice,
    check_flag,
    check_number,
    check_text,
    make_option_error,
    split_values,
)

BUDGETS = ("parameters", "macs")
IMPORTANCES = ("l1", "l2", "taylor")
PATTERNS = ("", "2:4")
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class PruneOptions(PassOptions):
    """Options of `prune`; structured = 0.5 if none of the first three is set.

    Attributes:
        structured: share of the network's parameters or multiply-accumulates to remove, as whole
            channels, filters and attention heads.
        unstructured: share of the layers' weights to zero, smallest magnitudes first.
        pattern: "2:4" zeroes the two smallest of every four weights along the input.
        of: quantity that `structured` is a share of, "parameters" or "macs".
        importance: score of a channel: "l1" or "l2", the norm of its weights relative to its layer;
            "taylor", the change of the network's outputs on training samples without it, or of the
            loss if these have class labels.
        per_layer: remove the same share of every layer; by default the least important channels of
            the whole network are removed.
        round_to: keep channels a multiple of this, for the kernels. Does not apply to heads.
        include: layer name patterns; other layers keep their output channels and weights.
        exclude: layer name patterns of layers that keep theirs.
        samples: number of training samples for "taylor", from the first on.
        batch_size: number of training samples per batch.
        seed: seed of the random directions of "taylor" without labels.
    """

    structured: float = 0.0
    unstructured: float = 0.0
    pattern: str = ""
    of: str = "parameters"
    importance: str = "l2"
    per_layer: bool = False
    round_to: int = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    samples: int = 1024
    batch_size: int = 32
    seed: int = 0

    NAME: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        check_number(self.NAME, "structured", self.structured, 0, 0.99)
        check_number(self.NAME, "unstructured", self.unstructured, 0, 0.99)
        check_choice(self.NAME, "pattern", self.pattern, PATTERNS)
        check_choice(self.NAME, "of", self.of, BUDGETS)
        check_choice(self.NAME, "importance", self.importance, IMPORTANCES)
        check_flag(self.NAME, "per_layer", self.per_layer)
        for option in ("round_to", "samples", "batch_size"):
            check_number(self.NAME, option, getattr(self, option), 1, whole=True)
        check_number(self.NAME, "seed", self.seed, 0, 2**63 - 1, whole=True)
        for option in ("include", "exclude"):
            patterns = split_values(getattr(self, option))
            for pattern in patterns:
                check_text(self.NAME, option, pattern)
            object.__setattr__(self, option, patterns)
        if self.unstructured and self.pattern:
            raise make_option_error(
                self.NAME,
                "unstructured",
                self.unstructured,
                f"the pattern {self.pattern} already determines the weights to zero",
                "remove one of them",
            )
        if not (self.structured or self.zeros):
            object.__setattr__(self, "structured", DEFAULT_SHARE)

    @property
    def zeros(self) -> bool:
        """Return True if single weights are zeroed."""
        return bool(self.unstructured or self.pattern)

    @property
    def needs(self) -> tuple[str, ...]:
        """Return "training" if the importance is measured on training samples."""
        if self.structured and self.importance == "taylor":
            return ("training",)
        return ()

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Reject structured pruning after a pattern, whose groups of four it would shift."""
        for _, options in earlier:
            if self.structured and isinstance(options, PruneOptions) and options.pattern:
                return (
                    "removing channels would shift the weights out of the pattern's groups of four"
                )
        return ""
