"""What `prune` can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepack.chain.options import PassOptions, flag, number, one_of, several, text, wrong

BUDGETS = ("parameters", "macs")
IMPORTANCES = ("l1", "l2", "taylor")
PATTERNS = ("", "2:4")
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class PruneOptions(PassOptions):
    """The options of `prune`; structured = 0.5 where none of the first three is said.

    Attributes:
        structured: the share of the network's parameters or multiply-accumulates that goes, with
            whole channels, filters and attention heads.
        unstructured: the share of the weights of layers that becomes zero, the smallest.
        pattern: "2:4": of every four weights along the input the two smallest become zero.
        of: what `structured` is a share of, "parameters" or "macs".
        importance: how channels are compared: "l1" or "l2" of their weights, relative to their
            layer's; "taylor", by what the network's answers change without them on training
            samples: by the loss where these have labels of classes.
        per_layer: every layer loses the same share; else the least important of the whole network
            go.
        round_to: channels stay a multiple of this, as kernels like them to be. Heads are counted.
        include: patterns of names of layers; others keep their output channels and weights.
        exclude: patterns of names of layers that keep theirs.
        samples: how many training samples "taylor" looks at, the first.
        batch_size: of these at once.
        seed: of the directions that "taylor" looks along without labels.
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
        number(self.NAME, "structured", self.structured, 0, 0.99)
        number(self.NAME, "unstructured", self.unstructured, 0, 0.99)
        one_of(self.NAME, "pattern", self.pattern, PATTERNS)
        one_of(self.NAME, "of", self.of, BUDGETS)
        one_of(self.NAME, "importance", self.importance, IMPORTANCES)
        flag(self.NAME, "per_layer", self.per_layer)
        for option in ("round_to", "samples", "batch_size"):
            number(self.NAME, option, getattr(self, option), 1, whole=True)
        number(self.NAME, "seed", self.seed, 0, 2**63 - 1, whole=True)
        for option in ("include", "exclude"):
            patterns = several(getattr(self, option))
            for pattern in patterns:
                text(self.NAME, option, pattern)
            object.__setattr__(self, option, patterns)
        if self.unstructured and self.pattern:
            raise wrong(
                self.NAME,
                "unstructured",
                self.unstructured,
                f"the pattern {self.pattern} says already which weights become zero",
                "leave one of them out",
            )
        if not (self.structured or self.zeros):
            object.__setattr__(self, "structured", DEFAULT_SHARE)

    @property
    def zeros(self) -> bool:
        """Whether single weights become zero."""
        return bool(self.unstructured or self.pattern)

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples to measure what the network's answers lose."""
        return ("training",) if self.structured and self.importance == "taylor" else ()

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Taking channels out moves what a pattern of four counts."""
        before = [options for _, options in earlier if isinstance(options, PruneOptions)]
        if self.structured and any(options.pattern for options in before):
            return "without some channels, the weights no longer stand in the pattern's fours"
        return ""
