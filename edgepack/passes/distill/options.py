"""Options of `distill`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgepack.passes.options import (
    PassOptions,
    check_flag,
    check_number,
    check_text,
    make_option_error,
    split_values,
)
from edgepack.passes.quantize.options import NAME as QUANTIZE
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.training.options import TrainingOptions

# Default peak learning rate of quantization-aware training.
AWARE_LR = 1e-4


@dataclass(frozen=True)
class DistillOptions(TrainingOptions):
    """Options of `distill`, besides those of the training loop.

    The student is the network that `student` builds, or the network with some of its layers, or, if
    neither is set, the network after the passes before.

    Attributes:
        student: "module:factory" or "file.py:factory", which builds the student.
        student_args: keyword arguments of the factory (in a manifest).
        layers: the layers of a transformer to keep, counted from 0; the others are removed.
        drop: instead of `layers`, the share of layers to remove, spread evenly.
        temperature: T, the divisor of scores before the softmax.
        alpha: weight of the soft targets for a sample with a label; the label has the weight
            1 - alpha. A sample without a label is trained on the soft targets alone.
        cosine: weight of 1 - cosine for outputs of kind "values", in addition to squared error.
        features: parts of teacher and student whose outputs are aligned by cosine distance, "name"
            or "teacher's=student's"; names as in `named_modules()`.
        feature_weight: weight of the distance of `features`.
        aware: train in the arithmetic of the `quantize` after it (see `passes.aware`), with batch
            norms folded first. The default peak learning rate is then 1e-4, and layers compute in
            fp32.
    """

    student: str = ""
    student_args: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    drop: float = 0.0
    temperature: float = 4.0
    alpha: float = 0.9
    cosine: float = 0.0
    features: str = ""
    feature_weight: float = 1.0
    aware: bool = False

    NAME: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("student", "features"):
            check_text(self.NAME, option, getattr(self, option))
        if not isinstance(self.student_args, Mapping):
            raise make_option_error(
                self.NAME, "student_args", self.student_args, "it must be a table", "{ width = 8 }"
            )
        check_number(self.NAME, "drop", self.drop, 0, 0.99)
        check_number(self.NAME, "temperature", self.temperature, 0.1, 100)
        check_number(self.NAME, "alpha", self.alpha, 0, 1)
        check_number(self.NAME, "cosine", self.cosine, 0, math.inf)
        check_number(self.NAME, "feature_weight", self.feature_weight, 0, math.inf)
        check_flag(self.NAME, "aware", self.aware)
        object.__setattr__(self, "layers", self._read_layers(self.layers))
        students = [option for option in ("student", "layers", "drop") if getattr(self, option)]
        if len(students) > 1:
            raise make_option_error(
                self.NAME,
                students[1],
                getattr(self, students[1]),
                f"{students[0]} already determines the student",
                "remove one of them",
            )
        if self.student_args and not self.student:
            raise make_option_error(
                self.NAME,
                "student_args",
                dict(self.student_args),
                "there is no factory to pass them to",
                'student = "file.py:factory"',
            )
        if self.aware and self.student:
            raise make_option_error(
                self.NAME,
                "aware",
                self.aware,
                f"{self.student} builds an untrained network",
                "train it first: --chain distill:student=...,distill:aware=true,quantize",
            )
        if self.aware and self.precision not in ("auto", "fp32"):
            raise make_option_error(
                self.NAME,
                "precision",
                self.precision,
                "aware=true rounds to 256 steps, which need more precision than a half",
                "precision=fp32",
            )

    def _read_layers(self, value: object) -> tuple[int, ...]:
        """Convert "0,2,4", a number, or a list of numbers to ascending positions."""
        positions = []
        for part in split_values(value):
            if isinstance(part, str) and part.isdecimal():
                part = int(part)
            check_number(self.NAME, "layers", part, 0, whole=True)
            positions.append(part)
        if positions != sorted(set(positions)):  # type: ignore[type-var]
            raise make_option_error(
                self.NAME, "layers", value, "it must ascend and not repeat a layer", "0,2,4"
            )
        return tuple(positions)  # type: ignore[arg-type]

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """Return the user's functions that augment, and that build the student."""
        if not self.student:
            return super().code
        return (*super().code, (self.student, dict(self.student_args)))

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the needs of the loop, and "quantize" for quantization-aware training."""
        if self.aware:
            return (*super().needs, QUANTIZE)
        return super().needs

    @property
    def peak(self) -> float:
        """Return the peak learning rate; its default is smaller for quantization-aware training.

        There, trained weights only have to move to a neighbouring integer.
        """
        if self.aware and not self.lr:
            return AWARE_LR
        return super().peak

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Reject a new student after passes whose changes it would discard."""
        # Only passes on the module can precede it.
        if self.student and earlier:
            name, _ = earlier[-1]
            return f"{self.student} is another network: the changes of {name} would be lost"
        return ""

    def unmet(self, later: Sequence[tuple[str, PassOptions]]) -> str:
        """Reject quantization-aware training unless quantize follows it directly."""
        if not self.aware:
            return ""
        disturbing = ""
        for name, options in later:
            if isinstance(options, QuantizeOptions):
                if not disturbing:
                    return ""
                return f"aware=true trains for int8, and {disturbing} would undo it before {name}"
            # Another aware distill may follow, as it continues the same training.
            if not (isinstance(options, DistillOptions) and options.aware):
                disturbing = disturbing or name
        return "aware=true trains for int8, and no quantize follows"
