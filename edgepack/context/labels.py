"""Kinds of a model's outputs, and the use of the labels that they are judged by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputKind:
    """Kind of an output, and the reason for it.

    Attributes:
        kind: one of `tensor.KINDS`.
        axis: of the classes, for scores.
        reason: reason for an inferred kind; "" for a kind from the user or the model.
        by_labels: True if it was inferred from the labels.
    """

    kind: str
    axis: int = -1
    reason: str = ""
    by_labels: bool = False


@dataclass(frozen=True)
class Labels:
    """Use of the labels of the evaluation samples.

    Attributes:
        used: True if quality is judged by them.
        unused: reason for not using them; "" for none.
        chance: warning that the original is right no more often than by guessing; "" otherwise.
    """

    used: bool = False
    unused: str = ""
    chance: str = ""
