"""What a training can be asked for, whatever it teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepack.chain.options import PassOptions, flag, number, one_of, text, wrong

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("onecycle", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STOPS = ("none", "plateau", "gate")
# Peak learning rate and weight decay where none are given: what torch's own examples start from.
DEFAULTS = {"adamw": (2e-3, 1e-2), "sgd": (0.05, 5e-4)}


@dataclass(frozen=True)
class TrainingOptions(PassOptions):
    """The options of the training loop; a pass that trains adds its own.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples of one optimizer step, over all processes and accumulated parts.
        optimizer: "adamw" (Loshchilov and Hutter, 2019) or "sgd", with Nesterov momentum.
        lr: the peak learning rate; 0 takes the optimizer's default, 2e-3 or 0.05.
        momentum: of "sgd".
        weight_decay: -1 takes the optimizer's default, 1e-2 or 5e-4. Not applied to parameters
            with fewer than two axes (biases, norms).
        schedule: "onecycle" (Smith and Topin, 2017), "cosine" with a linear rise (Loshchilov and
            Hutter, 2017), or "constant" with one.
        warmup: share of the steps in which the learning rate rises.
        accumulate: parts in which a batch is computed one after the other, to save memory.
        precision: "auto" takes bf16 or fp16 on a GPU and fp32 on a CPU; "bf16" and "fp16" compute
            the layers in that, weights and their updates stay fp32.
        gradient_checkpointing: compute activations twice instead of keeping them, where the model
            can (`gradient_checkpointing_enable`).
        clip: largest norm of a step's gradient; 0 for none.
        holdout: share of the training samples that is held out, to tell how far it is.
        stop: "none" runs every epoch and takes the last weights; "plateau" ends after `patience`
            epochs without a better held-out score, "gate" once that score holds the bundle's
            quality gate; both take the best weights.
        patience: of "plateau", in epochs.
        keep_zeros: weights that were pruned stay zero: those of a parameter of two or more axes
            of which a tenth or more is exactly zero, but not all of it.
        augment: "module:function" that changes a batch before it is learnt from: called with a
            dict of input tensors by name and a torch.Generator, it returns such a dict.
        checkpoint_steps: steps between checkpoints, from which a killed build goes on; one is
            also written after every epoch.
        seed: of the order, the augmentation and dropout.
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
            number(name, option, getattr(self, option), 1, whole=True)
        number(name, "seed", self.seed, 0, 2**31, whole=True)
        number(name, "lr", self.lr, 0, 10)
        number(name, "momentum", self.momentum, 0, 0.999)
        number(name, "weight_decay", self.weight_decay, -1, 1)
        number(name, "warmup", self.warmup, 0, 0.9)
        number(name, "clip", self.clip, 0, math.inf)
        number(name, "holdout", self.holdout, 0, 0.5)
        one_of(name, "optimizer", self.optimizer, OPTIMIZERS)
        one_of(name, "schedule", self.schedule, SCHEDULES)
        one_of(name, "precision", self.precision, PRECISIONS)
        one_of(name, "stop", self.stop, STOPS)
        flag(name, "gradient_checkpointing", self.gradient_checkpointing)
        flag(name, "keep_zeros", self.keep_zeros)
        text(name, "augment", self.augment)
        if self.batch_size % self.accumulate:
            raise wrong(
                name,
                "accumulate",
                self.accumulate,
                f"a batch of {self.batch_size} cannot be cut into so many equal parts",
                f"a divisor of {self.batch_size}",
            )
        if self.stop != "none" and not self.holdout:
            raise wrong(
                name,
                "stop",
                self.stop,
                "it is judged on training samples that are held out, and holdout is 0",
                "holdout=0.02",
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Training samples; and the gates, where one of them ends the training."""
        return ("training", "gates") if self.stop == "gate" else ("training",)

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """The function that augments."""
        return ((self.augment, None),) if self.augment else ()

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return float(self.lr or DEFAULTS[self.optimizer][0])

    @property
    def decay(self) -> float:
        """The weight decay."""
        given = self.weight_decay >= 0
        return float(self.weight_decay if given else DEFAULTS[self.optimizer][1])
