"""What `distill` can be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgepack.chain.options import PassOptions, flag, number, several, text, wrong
from edgepack.chain.training.options import TrainingOptions

# Peak learning rate of a training for int8 where none is given.
AWARE_LR = 1e-4


@dataclass(frozen=True)
class DistillOptions(TrainingOptions):
    """The options of `distill`, besides those of the training loop.

    The student is what `student` builds, or the network with some of its layers, or, where neither
    is said, the network as the passes before left it.

    Attributes:
        student: "module:factory" or "file.py:factory", which builds the student.
        student_args: keyword arguments of the factory (in a manifest).
        layers: the layers of a transformer that stay, counted from 0; the others are left out.
        drop: in place of `layers`, the share of layers to leave out, spread evenly.
        temperature: T, by which scores are divided before the softmax.
        alpha: the weight of the soft targets in a sample that has a label; the label has the rest.
            A sample without one is taught by the soft targets alone.
        cosine: weight of 1 - cosine, for outputs of kind "values", beside their squared error.
        features: a part of the network whose output the student's shall point the same way as,
            "name" or "teacher's=student's"; names as in `named_modules()`.
        feature_weight: weight of that.
        aware: the network computes as the `quantize` after it will make it, and learns so (see
            `chain.aware`); batch norms are folded first. The peak learning rate is then 1e-4
            where none is given, and layers compute in fp32.
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
            text(self.NAME, option, getattr(self, option))
        if not isinstance(self.student_args, Mapping):
            raise wrong(
                self.NAME, "student_args", self.student_args, "it takes a table", "{ width = 8 }"
            )
        number(self.NAME, "drop", self.drop, 0, 0.99)
        number(self.NAME, "temperature", self.temperature, 0.1, 100)
        number(self.NAME, "alpha", self.alpha, 0, 1)
        number(self.NAME, "cosine", self.cosine, 0, math.inf)
        number(self.NAME, "feature_weight", self.feature_weight, 0, math.inf)
        flag(self.NAME, "aware", self.aware)
        object.__setattr__(self, "layers", self._kept(self.layers))
        students = [option for option in ("student", "layers", "drop") if getattr(self, option)]
        if len(students) > 1:
            raise wrong(
                self.NAME,
                students[1],
                getattr(self, students[1]),
                f"{students[0]} says already what the student is",
                "leave one of them out",
            )
        if self.student_args and not self.student:
            raise wrong(
                self.NAME,
                "student_args",
                dict(self.student_args),
                "there is no factory to give them to",
                'student = "file.py:factory"',
            )
        if self.aware and self.student:
            raise wrong(
                self.NAME,
                "aware",
                self.aware,
                f"{self.student} has learnt nothing yet that int8 could lose",
                "train it first: --chain distill:student=...,distill:aware=true,quantize",
            )
        if self.aware and self.precision not in ("auto", "fp32"):
            raise wrong(
                self.NAME,
                "precision",
                self.precision,
                "aware=true rounds to 256 steps, of which a half precision float would lose some",
                "precision=fp32",
            )

    def _kept(self, value: object) -> tuple[int, ...]:
        """ "0,2,4", one number, or a list of them, as ascending positions."""
        found = []
        for part in several(value):
            if isinstance(part, str) and part.isdecimal():
                part = int(part)
            number(self.NAME, "layers", part, 0, whole=True)
            found.append(part)
        if found != sorted(set(found)):  # type: ignore[type-var]
            raise wrong(self.NAME, "layers", value, "each stands once, in ascending order", "0,2,4")
        return tuple(found)  # type: ignore[arg-type]

    @property
    def code(self) -> tuple[tuple[str, Mapping[str, object] | None], ...]:
        """The functions that augment and that build the student."""
        built = ((self.student, dict(self.student_args)),) if self.student else ()
        return (*super().code, *built)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the loop needs; and what will be quantized, where that is trained for."""
        return (*super().needs, "quantize") if self.aware else super().needs

    @property
    def peak(self) -> float:
        """The peak learning rate: small steps where trained weights are to move to the next int."""
        return AWARE_LR if self.aware and not self.lr else super().peak

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """A student of its own throws away what was cut out of the network before."""
        names = [name for name, _ in earlier if name in ("prune", "factorize", "distill")]
        if self.student and names:
            return f"{self.student} is another network: what {names[-1]} did would be lost"
        return ""

    def unmet(self, later: Sequence[tuple[str, PassOptions]]) -> str:
        """What is trained for int8 must become int8, as it is."""
        names = [name for name, _ in later]
        if not self.aware:
            return ""
        if "quantize" not in names:
            return "aware=true trains for int8, and no quantize follows"
        between = [
            name
            for name, options in later[: names.index("quantize")]
            if not (isinstance(options, DistillOptions) and options.aware)
        ]
        if between:
            return f"aware=true trains for int8, and {between[0]} would undo it before quantize"
        return ""
