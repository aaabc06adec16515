"""Options of the quantization pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepack.errors import ChainError
from edgepack.passes.options import (
    PassOptions,
    check_choice,
    check_flag,
    check_number,
    make_option_error,
)
from edgepack.passes.quantize.scheme import SYMMETRIC, WEIGHTS

NAME = "quantize"
MODES = ("static", "dynamic", "weights")
SCHEMES = tuple(WEIGHTS)
RANGES = ("full", "reduced", "pair-safe")
CALIBRATORS = ("minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "gptq")
# Bits of a weight, and the number of 4-bit weights that share a scale, by onnxruntime's kernels.
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)
EQUALIZATIONS = ("none", "cross-layer", "smooth", "both")
# Forms of layers without a fast static int8 kernel in the mode "static".
RECURRENT = ("dynamic", "weights", "float")
VOLUMES = ("weights", "static", "float")
_WORDS = {
    "scheme": SCHEMES,
    "range": RANGES,
    "calibrator": CALIBRATORS,
    "rounding": ROUNDINGS,
    "equalize": EQUALIZATIONS,
}


@dataclass(frozen=True)
class QuantizeOptions(PassOptions):
    """Options of `quantize`.

    Attributes:
        mode: values that become integers. "static": weights and activations, with ranges measured
            on calibration samples. "dynamic": both, with activation ranges taken at run time.
            "weights": only the stored weights; the arithmetic stays float.
        scheme: "fbgemm" or "qnnpack": u8 affine activations per tensor, s8 symmetric weights
            per channel, from -127 in "qnnpack". "tensorrt": s8 symmetric activations, float
            biases, Q/DQ pairs as TensorRT recommends.
        range: part of the signed 8-bit range (s8) that the weights use. "full" saturates on
            x86 without VNNI; "reduced" halves every weight; "pair-safe" limits only the pairs that
            could saturate, so that one file gives identical results with and without VNNI.
        calibrator: method that chooses an activation's range from its histogram.
        percentile: share of values inside the range of the percentile calibrator, in percent.
        bias_correction: subtract the mean error of every layer from its bias. By default this is
            done whenever the samples are read anyway.
        rounding: "nearest", or "gptq": later weights compensate the rounding errors of earlier
            ones. The default is "gptq" in the mode "static" and "nearest" in the others, which
            then need no calibration samples.
        bits: bits of a weight; only in the mode "weights", 8 by default.
        block: number of 4-bit weights of a row that share a scale, 32 by default.
        recurrent: form of LSTM, GRU and RNN in the mode "static"; onnxruntime has no static int8
            kernel for them. "dynamic": an LSTM is quantized at run time; GRU and RNN, which have no
            such kernel either, store int8 weights and compute in float. "weights": all of them do.
            The default is "dynamic", and "float" in the scheme "tensorrt".
        conv3d: form of three-dimensional convolutions in the mode "static". "weights": int8 in the
            file, float arithmetic, since onnxruntime's int8 kernel is slower than its float one.
            The default is "weights", and "static" in the scheme "tensorrt".
        equalize: scale channels to similar magnitudes before ranges are measured, by factors
            between layers where that is exact: "cross-layer" between one layer and the next,
            "smooth" between a LayerNormalization and its readers, "both". In the mode "static".
            With gptq it changes the SNR by -0.4 to +0.6 dB on the example networks; with nearest,
            by +6 dB on Silero VAD, +1.5 dB on a ResNet and -0.5 dB on EfficientNet-Lite0
            (benchmarks/equalize.py).
        alpha: share of the difference in magnitude that `equalize` moves to the weights.
        repair: if a gate is missed, return the most costly layers to float until it passes.
        exclude: names of nodes that stay float.
        batch_size: most samples of one run; fewer if their activations would not fit in memory.
    """

    mode: str = "static"
    scheme: str = "fbgemm"
    range: str = "pair-safe"
    calibrator: str = "mse"
    percentile: float = 99.99
    bias_correction: bool | None = None
    rounding: str = ""
    # Both are checked only in the mode "weights".
    bits: int | None = field(default=None, metadata={"values": ", ".join(map(str, BITS))})
    block: int | None = field(default=None, metadata={"values": ", ".join(map(str, BLOCKS))})
    recurrent: str = ""
    conv3d: str = ""
    equalize: str = "none"
    alpha: float = 0.5
    repair: bool = True
    exclude: tuple[str, ...] = ()
    batch_size: int = 16

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of the samples that ranges or weight rounding need."""
        if self.mode == "static" or self.rounding == "gptq" or self.bias_correction:
            return ("calibration",)
        return ()

    @property
    def repairs(self) -> bool:
        """True if layers are returned to float when a gate is missed."""
        return self.repair

    @property
    def multiplies_integers(self) -> bool:
        """True unless only the stored weights are integers."""
        return self.mode != "weights"

    @property
    def may_saturate(self) -> bool:
        """True for integer multiplications with weights that use the full range of s8."""
        return self.multiplies_integers and self.range == "full"

    def __post_init__(self) -> None:
        # One name on the command line, a list in TOML.
        exclude: object = self.exclude
        names = (exclude,) if isinstance(exclude, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", names)
        check_choice(NAME, "mode", self.mode, MODES)
        if not self.rounding:
            self._set("rounding", {"static": "gptq"}.get(self.mode, "nearest"))
        if self.bias_correction is None:
            self._set("bias_correction", self.mode == "static" or self.rounding == "gptq")
        self._set_bits()
        self._set_form("recurrent", RECURRENT, "float")
        self._set_form("conv3d", VOLUMES, "static")
        for option, words in _WORDS.items():
            check_choice(NAME, option, getattr(self, option), words)
        check_flag(NAME, "bias_correction", self.bias_correction)
        check_flag(NAME, "repair", self.repair)
        check_number(NAME, "alpha", self.alpha, 0, 1)
        # At 50 the range would shrink to the median.
        check_number(NAME, "percentile", self.percentile, 51, 100)
        check_number(NAME, "batch_size", self.batch_size, 1, whole=True)
        if self.equalize != "none" and self.mode != "static":
            raise ChainError(
                "quantize-option",
                f"the mode {self.mode!r} does not support equalize",
                why="channels are equalized to share the stored range of a tensor",
                hint=f"--chain quantize:equalize={self.equalize}:mode=static",
            )
        if self.scheme in SYMMETRIC and self.mode != "static":
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} does not support the mode {self.mode!r}",
                why="TensorRT reads integers only as Q/DQ pairs with calibrated ranges",
                hint=f"--chain quantize:scheme={self.scheme}:mode=static",
            )
        if self.scheme in SYMMETRIC and self.range != "full":
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} does not support the range {self.range!r}",
                why="GPUs add products in 32 bits, where nothing saturates",
                hint=f"--chain quantize:scheme={self.scheme}:range=full",
            )

    def _set(self, option: str, value: object) -> None:
        """Set an option of this frozen object to its default."""
        object.__setattr__(self, option, value)

    def _set_form(self, option: str, forms: tuple[str, ...], on_gpu: str) -> None:
        """Check a form of layers; the default is the first form, `on_gpu` for TensorRT."""
        form = getattr(self, option)
        if self.mode != "static":
            if form:
                raise ChainError(
                    "quantize-option",
                    f"the quantization option {option} does not apply",
                    why=f"it applies only in the mode 'static', not {self.mode!r}",
                    hint=f"--chain quantize:mode=static:{option}={form}",
                )
            return
        # TensorRT has integer Conv3d, but no integer recurrent layers and no weights-only form.
        gpu = self.scheme in SYMMETRIC
        if not form:
            self._set(option, on_gpu if gpu else forms[0])
        check_choice(NAME, option, getattr(self, option), forms)
        if gpu and getattr(self, option) not in (on_gpu, "float"):
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} does not support {option} {form!r}",
                why="TensorRT reads integers only as Q/DQ pairs",
                hint=f"--chain quantize:scheme={self.scheme}:{option}={on_gpu}",
            )

    def _set_bits(self) -> None:
        """Check bits and block; the default is 8 bits, and blocks of 32 for 4 bits."""
        if self.mode != "weights":
            for option in ("bits", "block"):
                if getattr(self, option) is not None:
                    raise ChainError(
                        "quantize-option",
                        f"the quantization option {option} does not apply",
                        why=f"weights always have 8 bits in the mode {self.mode!r}",
                        hint=f"--chain quantize:mode=weights:{option}={getattr(self, option)}",
                    )
            return
        if self.bits is None:
            self._set("bits", 8)
        _check_kernels("bits", self.bits, BITS)
        if self.block is not None and self.bits == 8:
            raise ChainError(
                "quantize-option",
                "weights of 8 bits have no blocks",
                why=f"block = {self.block!r} is set, but a row of 8-bit weights has one scale",
                hint=f"--chain quantize:mode=weights:bits=4:block={self.block}",
            )
        if self.bits == 4:
            if self.block is None:
                self._set("block", 32)
            _check_kernels("block", self.block, BLOCKS)


def _check_kernels(option: str, value: object, supported: tuple[int, ...]) -> None:
    if isinstance(value, bool) or value not in supported:
        kernels = "onnxruntime has kernels for " + ", ".join(map(str, supported))
        raise make_option_error(NAME, option, value, kernels)
