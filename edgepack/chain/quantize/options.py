"""What the quantization pass can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.chain.options import PassOptions
from edgepack.chain.quantize.scheme import SYMMETRIC, WEIGHTS
from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean

SCHEMES = tuple(WEIGHTS)
RANGES = ("full", "reduced", "pair-safe")
CALIBRATORS = ("minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "gptq")


@dataclass(frozen=True)
class QuantizeOptions(PassOptions):
    """The options of `quantize`.

    Attributes:
        scheme: "fbgemm" or "qnnpack": u8 affine activations per tensor, s8 symmetric weights
            per channel, in qnnpack's from -127 on. "tensorrt": s8 symmetric activations, float
            biases, pairs where TensorRT wants them.
        range: how much of s8 the weights use. "full" saturates on x86 without VNNI; "reduced"
            halves every weight; "pair-safe" limits only the pairs that could saturate, so that
            one file gives the same bits with and without VNNI.
        calibrator: how an activation's range follows from its histogram.
        percentile: the share of values that the percentile calibrator keeps, in percent.
        bias_correction: take the mean error of every layer out of its bias.
        rounding: "nearest", or "gptq": every weight's rounding error is made up for by the
            weights after it.
        exclude: names of nodes that stay float.
        batch_size: samples that are run at once.
    """

    scheme: str = "fbgemm"
    range: str = "pair-safe"
    calibrator: str = "mse"
    percentile: float = 99.99
    bias_correction: bool = True
    rounding: str = "gptq"
    exclude: tuple[str, ...] = ()
    batch_size: int = 4

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples that the range of every activation is measured on."""
        return ("calibration",)

    def __post_init__(self) -> None:
        # One name on the command line, a list in TOML.
        given: object = self.exclude
        names = (given,) if isinstance(given, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", names)
        for option, kind in _KINDS.items():
            _of_kind(option, getattr(self, option), kind)
        _one_of("scheme", self.scheme, SCHEMES)
        _one_of("range", self.range, RANGES)
        _one_of("calibrator", self.calibrator, CALIBRATORS)
        _one_of("rounding", self.rounding, ROUNDINGS)
        if self.scheme in SYMMETRIC and self.range != "full":
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} has no range {self.range!r}",
                why="GPUs add products in 32 bits: nothing saturates, and nothing is to be spared",
                hint=f"--chain quantize:scheme={self.scheme}:range=full",
            )
        if not 50.0 < self.percentile <= 100.0:
            raise ChainError(
                "quantize-option",
                "the percentile must be above 50 and at most 100",
                why=f"percentile = {self.percentile:g}",
                hint="99.99 keeps all but one value in ten thousand",
            )
        if self.batch_size < 1:
            raise ChainError(
                "quantize-option",
                "the batch size must be at least 1",
                why=f"batch_size = {self.batch_size}",
                hint="leave it out for the default",
            )


_KINDS: dict[str, tuple[type, ...]] = {
    "percentile": (int, float),
    "bias_correction": (bool,),
    "batch_size": (int,),
}


def _of_kind(option: str, value: object, kinds: tuple[type, ...]) -> None:
    # A bool is an int to Python, not to the reader of a profile.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ChainError(
            "quantize-option",
            f"the quantization option {option} cannot be {value!r}",
            why=f"it takes {'true or false' if bool in kinds else 'a number'}",
            hint="leave it out for the default",
        )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ChainError(
            "quantize-option",
            f"the quantization option {option} has no value {value!r}",
            why=f"it was asked for{did_you_mean(str(value), known)}",
            hint="one of " + ", ".join(known),
        )
