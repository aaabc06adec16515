"""Options of the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepack.passes.options import (
    PassOptions,
    check_choice,
    check_flag,
    check_number,
    check_text,
    make_option_error,
)

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("onecycle", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STOPS = ("none", "plateau", "gate")
# Default peak learning rate and weight decay, those of torch's own examples.
DEFAULTS = {"adamw": (2e-3, 1e-2), "sgd": (0.05, 5e-4)}


@dataclass(frozen=True)
class TrainingOptions(PassOptions):
    """Options of the training loop; a pass that trains adds its own.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples of one optimizer step, over all processes and accumulated parts.
        optimizer: "adamw" (Loshchilov and Hutter, 2019) or "sgd", with Nesterov momentum.
        lr: the peak learning rate; 0 selects the optimizer's default, 2e-3 or 0.05.
        momentum: momentum of "sgd".
        weight_decay: -1 selects the optimizer's default, 1e-2 or 5e-4. It is not applied to
            parameters with fewer than two axes (biases, norms).
        schedule: "onecycle" (Smith and Topin, 2017), "cosine" with a linear warmup (Loshchilov and
            Hutter, 2017), or "constant" with a linear warmup.
        warmup: share of the steps in which the learning rate rises.
        accumulate: number of parts in which a batch is computed one by one, to save memory.
        precision: "auto" selects bf16 or fp16 on a GPU and fp32 on a CPU; "bf16" and "fp16" apply
            to the layers' arithmetic, while weights and their updates remain fp32.
        gradient_checkpointing: recompute activations instead of storing them; the model must
            support it (`gradient_checkpointing_enable`).
        clip: largest norm of a step's gradient; 0 for no limit.
        holdout: share of the training samples to hold out for the score.
        stop: "none" runs every epoch and uses the last weights; "plateau" ends after `patience`
            epochs without a better held-out score, "gate" once that score passes the bundle's
            quality gate; both use the best weights.
        patience: number of epochs without a better score after which "plateau" ends.
        keep_zeros: preserve the zeros of pruned parameters: those with two or more axes and at
            least a tenth, but not all, of their weights exactly zero.
        augment: "module:function" that augments a batch: called with a dict of input tensors by
            name and a torch.Generator, it returns such a dict.
        checkpoint_steps: steps between the checkpoints from which an interrupted build resumes; one
            is also written after every epoch.
        seed: seed of the order, the augmentation and dropout.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = -1.0
    schedule: str = "onecycle"
    warmup: float = 0.3
    accumulate: int = 1
    precision: str = "auto"
    gradient_checkpointing: bool = False
    clip: float = 1.0
    holdout: float = 0.02
    stop: str = "none"
    patience: int = 3
    keep_zeros: bool = True
    augment: str = ""
    checkpoint_steps: int = 500
    seed: int = 0

    NAME: ClassVar[str] = "training"

    def __post_init__(self) -> None:
        name = self.NAME
        for option in ("epochs", "batch_size", "accumulate", "patience", "checkpoint_steps"):
            check_number(name, option, getattr(self, option), 1, whole=True)
        check_number(name, "seed", self.seed, 0, 2**31, whole=True)
        check_number(name, "lr", self.lr, 0, 10)
        check_number(name, "momentum", self.momentum, 0, 0.999)
        check_number(name, "weight_decay", self.weight_decay, -1, 1)
        check_number(name, "warmup", self.warmup, 0, 0.9)
        check_number(name, "clip", self.clip, 0, math.inf)
        check_number(name, "holdout", self.holdout, 0, 0.5)
        check_choice(name, "optimizer", self.optimizer, OPTIMIZERS)
        check_choice(name, "schedule", self.schedule, SCHEDULES)
        check_choice(name, "precision", self.precision, PRECISIONS)
        check_choice(name, "stop", self.stop, STOPS)
        check_flag(name, "gradient_checkpointing", self.gradient_checkpointing)
        check_flag(name, "keep_zeros", self.keep_zeros)
        check_text(name, "augment", self.augment)
        if self.batch_size % self.accumulate:
            raise make_option_error(
                name,
                "accumulate",
                self.accumulate,
                f"a batch of {self.batch_size} is not divisible into as many equal parts",
                f"a divisor of {self.batch_size}",
            )
        if self.stop != "none" and not self.holdout:
            raise make_option_error(
                name,
                "stop",
                self.stop,
                "it needs held-out training samples, and holdout is 0",
                "holdout=0.02",
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Return "training", and "gates" if one of them ends the training."""
        if self.stop == "gate":
            return ("training", "gates")
        return ("training",)

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """Return the user's function that augments, if any."""
        if not self.augment:
            return ()
        return ((self.augment, None),)

    @property
    def peak(self) -> float:
        """Return the peak learning rate."""
        return float(self.lr or DEFAULTS[self.optimizer][0])

    @property
    def decay(self) -> float:
        """Return the weight decay."""
        if self.weight_decay >= 0:
            return float(self.weight_decay)
        return DEFAULTS[self.optimizer][1]
