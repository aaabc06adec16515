"""What the quantization pass can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.chain.options import PassOptions, flag, number, one_of, wrong
from edgepack.chain.quantize.scheme import SYMMETRIC, WEIGHTS
from edgepack.errors import ChainError

NAME = "quantize"
MODES = ("static", "dynamic", "weights")
SCHEMES = tuple(WEIGHTS)
RANGES = ("full", "reduced", "pair-safe")
CALIBRATORS = ("minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "gptq")
# Of a weight, and weights that share a scale where it has four: what onnxruntime has kernels for.
BITS = (4, 8)
BLOCKS = (16, 32, 64, 128, 256)
EQUALIZATIONS = ("none", "cross-layer", "smooth", "both")
# Forms of a layer that has no static int8 kernel, or a slow one, beside static layers.
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
    """The options of `quantize`.

    Attributes:
        mode: what becomes integer. "static": weights and activations, whose ranges are measured
            on calibration samples. "dynamic": both, the activations' ranges taken at run time.
            "weights": the file alone, the arithmetic stays float.
        scheme: "fbgemm" or "qnnpack": u8 affine activations per tensor, s8 symmetric weights
            per channel, in qnnpack's from -127 on. "tensorrt": s8 symmetric activations, float
            biases, pairs where TensorRT wants them.
        range: how much of s8 the weights use. "full" saturates on x86 without VNNI; "reduced"
            halves every weight; "pair-safe" limits only the pairs that could saturate, so that
            one file gives the same bits with and without VNNI.
        calibrator: how an activation's range follows from its histogram.
        percentile: the share of values that the percentile calibrator keeps, in percent.
        bias_correction: take the mean error of every layer out of its bias; left out, it is done
            wherever the samples are read anyway.
        rounding: "nearest", or "gptq": every weight's rounding error is made up for by the
            weights after it. Left out, it is "gptq" in the mode "static" and "nearest" in the
            others, which then need no calibration samples.
        bits: of a weight, 8 or 4; in the mode "weights" alone.
        block: weights of a row that share a scale, where they have 4 bits.
        recurrent: form of LSTM, GRU and RNN in the mode "static", for which onnxruntime has no
            static int8 kernel. "dynamic": an LSTM is quantized at run time; GRU and RNN, for which
            there is no such kernel either, store int8 weights and compute in float. "weights": all
            of them do. Left out, it is "dynamic", and "float" in the scheme "tensorrt".
        conv3d: form of three-dimensional convolutions in the mode "static". "weights": int8 in the
            file, float arithmetic, since onnxruntime's int8 kernel is slower than its float one.
            Left out, it is "weights", and "static" in the scheme "tensorrt".
        equalize: channels of like size before ranges are measured, by factors between layers, where
            that is exact: "cross-layer" between one layer and the next, "smooth" between a
            LayerNormalization and what reads it, "both". In the mode "static". Beside gptq it is
            worth -0.4 to 0.6 dB of SNR on the example networks; rounded to the nearest, 6 dB on
            Silero VAD, 1.5 on a ResNet, and -0.5 on EfficientNet-Lite0 (benchmarks/equalize.py).
        alpha: of `equalize`, the share of the difference in size that moves into the weights.
        repair: where a gate is missed, return to float the layers that cost most, until it holds.
        exclude: names of nodes that stay float.
        batch_size: samples that are run at once.
    """

    mode: str = "static"
    scheme: str = "fbgemm"
    range: str = "pair-safe"
    calibrator: str = "mse"
    percentile: float = 99.99
    bias_correction: bool | None = None
    rounding: str = ""
    bits: int | None = None
    block: int | None = None
    recurrent: str = ""
    conv3d: str = ""
    equalize: str = "none"
    alpha: float = 0.5
    repair: bool = True
    exclude: tuple[str, ...] = ()
    batch_size: int = 4

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples that ranges are measured on, or that weights are rounded for."""
        looks = self.mode == "static" or self.rounding == "gptq" or self.bias_correction
        return ("calibration",) if looks else ()

    @property
    def repairs(self) -> bool:
        """Whether layers go back to float where a gate is missed."""
        return self.repair

    def __post_init__(self) -> None:
        # One name on the command line, a list in TOML.
        exclude: object = self.exclude
        names = (exclude,) if isinstance(exclude, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", names)
        one_of(NAME, "mode", self.mode, MODES)
        if not self.rounding:
            self._set("rounding", "gptq" if self.mode == "static" else "nearest")
        if self.bias_correction is None:
            self._set("bias_correction", self.mode == "static" or self.rounding == "gptq")
        self._set_bits()
        self._set_form("recurrent", RECURRENT, "float")
        self._set_form("conv3d", VOLUMES, "static")
        for option, words in _WORDS.items():
            one_of(NAME, option, getattr(self, option), words)
        flag(NAME, "bias_correction", self.bias_correction)
        flag(NAME, "repair", self.repair)
        number(NAME, "alpha", self.alpha, 0, 1)
        # At 50 nothing would be left but the median.
        number(NAME, "percentile", self.percentile, 51, 100)
        number(NAME, "batch_size", self.batch_size, 1, whole=True)
        if self.equalize != "none" and self.mode != "static":
            raise ChainError(
                "quantize-option",
                f"the mode {self.mode!r} has nothing to equalize",
                why="channels are scaled for the one range that a tensor of theirs is stored in",
                hint=f"--chain quantize:equalize={self.equalize}:mode=static",
            )
        if self.scheme in SYMMETRIC and self.mode != "static":
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} has no mode {self.mode!r}",
                why="TensorRT takes integers as Q/DQ pairs alone, with ranges that were measured",
                hint=f"--chain quantize:scheme={self.scheme}:mode=static",
            )
        if self.scheme in SYMMETRIC and self.range != "full":
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} has no range {self.range!r}",
                why="GPUs add products in 32 bits: nothing saturates, and nothing is to be spared",
                hint=f"--chain quantize:scheme={self.scheme}:range=full",
            )

    def _set(self, option: str, value: object) -> None:
        object.__setattr__(self, option, value)

    def _set_form(self, option: str, forms: tuple[str, ...], on_gpu: str) -> None:
        """Settle the form of layers beside the static ones: the first, `on_gpu` for TensorRT."""
        form = getattr(self, option)
        if self.mode != "static":
            if form:
                raise ChainError(
                    "quantize-option",
                    f"the quantization option {option} has no meaning here",
                    why=f"the mode {self.mode!r} gives every layer its own form",
                    hint=f"--chain quantize:mode=static:{option}={form}",
                )
            return
        gpu = self.scheme in SYMMETRIC
        if not form:
            self._set(option, on_gpu if gpu else forms[0])
        one_of(NAME, option, getattr(self, option), forms)
        if gpu and getattr(self, option) not in (on_gpu, "float"):
            raise ChainError(
                "quantize-option",
                f"the scheme {self.scheme} has no {option} {form!r}",
                why="TensorRT takes integers as Q/DQ pairs alone",
                hint=f"--chain quantize:scheme={self.scheme}:{option}={on_gpu}",
            )

    def _set_bits(self) -> None:
        """Bits and block: 8, or 4 in blocks of 32, and neither where activations are integers."""
        if self.mode != "weights":
            for option in ("bits", "block"):
                if getattr(self, option) is not None:
                    raise ChainError(
                        "quantize-option",
                        f"the quantization option {option} has no meaning here",
                        why=f"in the mode {self.mode!r} every weight has 8 bits",
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
                why=f"block = {self.block!r}: a row of them has one scale",
                hint=f"--chain quantize:mode=weights:bits=4:block={self.block}",
            )
        if self.bits == 4:
            if self.block is None:
                self._set("block", 32)
            _check_kernels("block", self.block, BLOCKS)


def _check_kernels(option: str, value: object, supported: tuple[int, ...]) -> None:
    if isinstance(value, bool) or value not in supported:
        kernels = "onnxruntime has kernels for " + ", ".join(map(str, supported))
        raise wrong(NAME, option, value, kernels)
