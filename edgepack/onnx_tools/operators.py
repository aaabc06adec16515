"""Traits of operators: one row for each operator that edgepack treats specially.

Placement, equalization, channel order, fp16, simplification and the count of multiply-accumulates
read them here. To teach edgepack an operator, add a row, and let `tests/unit/test_operators.py`
check it against onnx's schemas and onnxruntime. An operator without a row has no traits: passes
leave it in float32 and change nothing across it.

    row = operator(node.op_type)
    if Trait.ELEMENTWISE in row.traits: ...
    if node.op_type in having(Trait.POOLS): ...
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal


class Trait(Enum):
    """Properties of operators."""

    MOVES = auto()
    """Every output value is an input value or the value of a pad: nothing is computed."""

    ELEMENTWISE = auto()
    """An output value depends only on the input values at its position, after broadcasting."""

    HOMOGENEOUS = auto()
    """f(s x) = s f(x) for every s > 0, element by element."""

    ADDS = auto()
    """The sum or difference of the operands, element by element."""

    SCALES = auto()
    """The product or quotient of two operands, element by element."""

    POOLS = auto()
    """Combines the values of a window, each channel (axis 1) by itself."""

    AVERAGES = auto()
    """A pool that outputs the mean of its window."""

    FLATTENS = auto()
    """May remove or join trailing axes."""

    CLAMPS = auto()
    """Limits values to constant bounds; a quantization right after it can replace it, since the
    range of its integers has the same effect."""

    LAYER = auto()
    """Sums products of an input with trained weights, its second input."""

    RECURRENT = auto()
    """A layer that passes a state from step to step."""

    EXACT = auto()
    """Outputs do not depend on the order or precision of any arithmetic: they have the same bits in
    every implementation."""

    ROUNDS_ONCE = auto()
    """Integer arithmetic that rounds once, to its output."""

    QUANTIZED = auto()
    """Occurs in quantized models only."""

    QUANTIZES = auto()
    """Converts between real values and integers: QuantizeLinear and DequantizeLinear."""

    HALF = auto()
    """Has fp16 kernels both in onnxruntime's CUDA provider and in TensorRT."""

    READS_ANY_FLOAT = auto()
    """Reads fp16 and float32 alike and outputs neither."""

    FLOORS = auto()
    """A tiny constant operand keeps the result away from 0, like the epsilon of a norm."""

    ANGLES = auto()
    """Reads an angle, which fp16 rounds by more the larger it is."""

    TENSORRT_MOVES = auto()
    """TensorRT moves a Q backwards over it."""

    TENSORRT_POINTWISE = auto()
    """TensorRT computes it in the kernel of the layer before it, on the layer's sums."""


Int8 = Literal["layer", "arithmetic", "moves"]
"""Static int8 kernels of onnxruntime's CPU provider: of a layer with constant weights; of other
arithmetic, which requantizes its output; of moves, whose two sides share a quantization."""

Products = Literal["convolution", "transposed", "matrix", "packed", "recurrent", "einsum", "hidden"]
"""Rules to count multiply-accumulates; "hidden" products cannot be counted."""

Bound = Literal[
    "absolute", "average", "global-sum", "reduction", "squares", "variance", "softmax", "recurrent"
]
"""Rules to bound the partial sums of an operator, which may exceed its inputs and outputs."""


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: type of the node.
        traits: its properties.
        domain: "" for ONNX's own.
        weights: input slots of the matrices of weights.
        trained: input slots of all trained values; they are finite.
        products: rule to count its multiply-accumulates; None if it has none.
        bound: rule to bound its partial sums; None if they never exceed inputs and outputs.
        divisor: input slot whose tiny values give a huge result; None without one.
        float_slots: input slots that are float32 even if the node computes in fp16.
        int8: static int8 kernel of onnxruntime; None without one.
        activations: number of inputs that the int8 kernel reads quantized; None for all.
        no_int8: why a layer has no static int8 kernel in onnxruntime.
        no_dynamic: why a layer is not quantized at run time.
        no_tensorrt: why a layer stays float in TensorRT, if not for the reason of `no_int8`.
        no_half: why it stays float32 beside fp16.
    """

    name: str
    traits: frozenset[Trait] = frozenset()
    domain: str = ""
    weights: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    products: Products | None = None
    bound: Bound | None = None
    divisor: int | None = None
    float_slots: tuple[int, ...] = ()
    int8: Int8 | None = None
    activations: int | None = None
    no_int8: str = ""
    no_dynamic: str = ""
    no_tensorrt: str = ""
    no_half: str = ""


# Short names keep a row on a line.
MOVES, ELEMENTWISE, HOMOGENEOUS = Trait.MOVES, Trait.ELEMENTWISE, Trait.HOMOGENEOUS
ADDS, SCALES, POOLS, AVERAGES = Trait.ADDS, Trait.SCALES, Trait.POOLS, Trait.AVERAGES
FLATTENS, CLAMPS, LAYER, RECURRENT = Trait.FLATTENS, Trait.CLAMPS, Trait.LAYER, Trait.RECURRENT
EXACT, ROUNDS_ONCE, QUANTIZED = Trait.EXACT, Trait.ROUNDS_ONCE, Trait.QUANTIZED
QUANTIZES, HALF, READS_ANY_FLOAT = Trait.QUANTIZES, Trait.HALF, Trait.READS_ANY_FLOAT
FLOORS, ANGLES = Trait.FLOORS, Trait.ANGLES
TENSORRT_MOVES, TENSORRT_POINTWISE = Trait.TENSORRT_MOVES, Trait.TENSORRT_POINTWISE

_MICROSOFT = "com.microsoft"
_NO_TRANSPOSED = "onnxruntime has no integer transposed convolution on the CPU"
_NO_EINSUM = "onnxruntime has no integer Einsum"
_COMPARES = "it compares or truncates values that fp16 may make equal"
_SUBGRAPHS = "the tensors in its subgraphs are not measured"
_FUSED = "a fused operator of onnxruntime that ONNX cannot express"
_ATTENTION = "an attention layer in one operator: its products cannot be quantized separately"


def _row(name: str, *traits: Trait, **fields: object) -> Operator:
    return Operator(name, frozenset(traits), **fields)  # type: ignore[arg-type]


def _fused(name: str, products: Products | None = None) -> Operator:
    return _row(name, domain=_MICROSOFT, weights=(1,), products=products, no_int8=_FUSED)


def _attention(name: str, domain: str = _MICROSOFT) -> Operator:
    return _row(name, domain=domain, products="hidden", no_int8=_ATTENTION)


def _compares(name: str, *traits: Trait) -> Operator:
    return _row(name, *traits, no_half=_COMPARES)


_ROWS = (
    # Layers.
    _row("Conv", LAYER, HALF, weights=(1,), trained=(1, 2), products="convolution",
         bound="absolute", int8="layer", activations=1,
         # On x86-64 with VNNI, ConvInteger takes five to seven times as long as the float Conv.
         no_dynamic="onnxruntime's dynamic int8 convolution is slower than its float one"),
    _row("ConvTranspose", LAYER, HALF, weights=(1,), trained=(1, 2), products="transposed",
         bound="absolute",
         no_int8=_NO_TRANSPOSED, no_dynamic=_NO_TRANSPOSED,
         no_tensorrt="edgepack quantizes no transposed convolution"),
    _row("DeformConv", weights=(1,), trained=(1, 3), products="convolution",
         no_int8="onnxruntime has no integer deformable convolution",
         no_tensorrt="edgepack quantizes no deformable convolution"),
    _row("Gemm", LAYER, HALF, weights=(0, 1), trained=(0, 1, 2), products="matrix",
         bound="absolute", int8="layer", activations=1),
    _row("MatMul", LAYER, HALF, weights=(0, 1), trained=(0, 1), products="matrix",
         bound="absolute", int8="layer", activations=1),
    _row("Einsum", HALF, weights=(0, 1), products="einsum", bound="absolute",
         no_int8=_NO_EINSUM, no_dynamic=_NO_EINSUM,
         no_tensorrt="edgepack quantizes no Einsum"),
    _row("LSTM", LAYER, RECURRENT, HALF, weights=(1, 2), trained=(1, 2, 3), products="recurrent",
         bound="recurrent",
         no_int8="recurrent: onnxruntime has no static int8 LSTM",
         no_tensorrt="recurrent: TensorRT has no integer LSTM"),
    _row("GRU", LAYER, RECURRENT, HALF, weights=(1, 2), trained=(1, 2, 3), products="recurrent",
         bound="recurrent",
         no_int8="recurrent: onnxruntime has no static int8 GRU",
         no_dynamic="recurrent: onnxruntime has no dynamic int8 GRU",
         no_tensorrt="recurrent: TensorRT has no integer GRU"),
    _row("RNN", LAYER, RECURRENT, HALF, weights=(1, 2), trained=(1, 2, 3), products="recurrent",
         bound="recurrent",
         no_int8="recurrent: onnxruntime has no static int8 RNN",
         no_dynamic="recurrent: onnxruntime has no dynamic int8 RNN",
         no_tensorrt="recurrent: TensorRT has no integer RNN"),

    # Normalization.
    _row("BatchNormalization", HALF, trained=(1, 2, 3, 4)),
    _row("InstanceNormalization", HALF, trained=(1, 2), bound="variance"),
    _row("LayerNormalization", HALF, trained=(1, 2), bound="variance"),
    _row("RMSNormalization", HALF, bound="variance"),
    _row("LogSoftmax", HALF, bound="softmax"),
    _row("Softmax", HALF, bound="softmax"),

    # Sums and pools.
    _row("AveragePool", POOLS, AVERAGES, HALF, bound="average", int8="arithmetic", activations=1),
    _row("GlobalAveragePool", POOLS, AVERAGES, HALF, bound="global-sum", int8="arithmetic",
         activations=1),
    _row("GlobalMaxPool", POOLS, MOVES, EXACT, HALF),
    _row("MaxPool", POOLS, MOVES, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("ReduceL1", HALF, bound="reduction"),
    _row("ReduceL2", HALF, bound="squares"),
    _row("ReduceMax", MOVES, EXACT, HALF),
    _row("ReduceMean", HALF, bound="reduction"),
    _row("ReduceMin", MOVES, EXACT, HALF),
    _row("ReduceSum", HALF, bound="reduction"),
    _row("ReduceSumSquare", HALF, bound="squares"),
    _row("CumSum", no_half=_COMPARES),

    # Arithmetic on elements.
    _row("Abs", ELEMENTWISE, HOMOGENEOUS, EXACT, HALF),
    _row("Add", ELEMENTWISE, ADDS, FLOORS, HALF, int8="arithmetic", activations=2),
    _row("Cast", ELEMENTWISE, EXACT, HALF),
    _row("Clip", ELEMENTWISE, CLAMPS, FLOORS, EXACT, HALF, TENSORRT_MOVES, TENSORRT_POINTWISE),
    _row("Cos", ELEMENTWISE, ANGLES, HALF),
    _row("Div", ELEMENTWISE, SCALES, HALF, divisor=1),
    _row("Dropout", HOMOGENEOUS),
    _row("Elu", ELEMENTWISE, HALF, TENSORRT_POINTWISE),
    _row("Erf", ELEMENTWISE, HALF),
    _row("Exp", ELEMENTWISE, HALF),
    _row("Gelu", ELEMENTWISE, HALF),
    _row("HardSigmoid", ELEMENTWISE, HALF, TENSORRT_POINTWISE),
    _row("HardSwish", ELEMENTWISE, HALF, TENSORRT_POINTWISE),
    _row("LeakyRelu", ELEMENTWISE, HOMOGENEOUS, HALF, TENSORRT_POINTWISE, int8="arithmetic",
         activations=1),
    _row("Log", ELEMENTWISE, HALF, divisor=0),
    _row("Max", ELEMENTWISE, FLOORS, EXACT, HALF),
    _row("Min", ELEMENTWISE, EXACT, HALF),
    _row("Mish", ELEMENTWISE),
    _row("Mul", ELEMENTWISE, SCALES, HALF, int8="arithmetic", activations=2),
    _row("Neg", ELEMENTWISE, HOMOGENEOUS, EXACT, HALF),
    _row("PRelu", ELEMENTWISE, HOMOGENEOUS, HALF, trained=(1,)),
    # Whether Pow divides depends on its exponent: see passes.half.
    _row("Pow", ELEMENTWISE, HALF),
    _row("Reciprocal", ELEMENTWISE, HALF, divisor=0),
    _row("Relu", ELEMENTWISE, HOMOGENEOUS, CLAMPS, EXACT, HALF, TENSORRT_MOVES,
         TENSORRT_POINTWISE, int8="arithmetic", activations=1),
    _row("Selu", ELEMENTWISE, HALF),
    _row("Sigmoid", ELEMENTWISE, HALF, TENSORRT_POINTWISE, int8="arithmetic", activations=1),
    _row("Sign", ELEMENTWISE, EXACT, HALF),
    _row("Sin", ELEMENTWISE, ANGLES, HALF),
    _row("Softplus", ELEMENTWISE, HALF),
    _row("Softsign", ELEMENTWISE, HALF),
    _row("Sqrt", ELEMENTWISE, HALF),
    _row("Sub", ELEMENTWISE, ADDS, HALF),
    _row("Sum", ELEMENTWISE, ADDS, HALF, bound="absolute"),
    _row("Tanh", ELEMENTWISE, HALF, TENSORRT_POINTWISE),
    _row("ThresholdedRelu", ELEMENTWISE, EXACT, HALF),

    # Comparisons and whole numbers.
    _compares("ArgMax", EXACT),
    _compares("ArgMin", EXACT),
    _compares("Ceil", ELEMENTWISE, EXACT),
    _compares("Equal", ELEMENTWISE, EXACT),
    _compares("Floor", ELEMENTWISE, EXACT),
    _compares("Greater", ELEMENTWISE, EXACT),
    _compares("GreaterOrEqual", ELEMENTWISE, EXACT),
    _compares("Less", ELEMENTWISE, EXACT),
    _compares("LessOrEqual", ELEMENTWISE, EXACT),
    _compares("Mod", ELEMENTWISE),
    _compares("NonMaxSuppression"),
    _compares("Round", ELEMENTWISE, EXACT),
    _compares("TopK", EXACT),
    _row("And", ELEMENTWISE, EXACT),
    _row("Not", ELEMENTWISE, EXACT),
    _row("Or", ELEMENTWISE, EXACT),
    _row("IsNaN", ELEMENTWISE, EXACT, READS_ANY_FLOAT),

    # Moves.
    _row("Concat", MOVES, EXACT, HALF, int8="arithmetic"),
    _row("DepthToSpace", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("Expand", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("Flatten", MOVES, FLATTENS, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("Gather", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("GatherElements", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("GatherND", MOVES, EXACT, HALF),
    _row("Identity", MOVES, ELEMENTWISE, HOMOGENEOUS, EXACT, HALF, TENSORRT_MOVES),
    _row("Pad", MOVES, EXACT, HALF),
    _row("Reshape", MOVES, FLATTENS, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("ScatterElements", MOVES, EXACT, HALF),
    _row("ScatterND", MOVES, EXACT, HALF),
    _row("Slice", MOVES, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("SpaceToDepth", MOVES, EXACT, HALF),
    _row("Split", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("Squeeze", MOVES, FLATTENS, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("Tile", MOVES, EXACT, HALF, int8="moves", activations=1),
    _row("Transpose", MOVES, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("Unsqueeze", MOVES, EXACT, HALF, TENSORRT_MOVES, int8="moves", activations=1),
    _row("Where", MOVES, ELEMENTWISE, EXACT, HALF),
    # Its float slots are the region and the scales. Only `nearest` moves values.
    _row("Resize", HALF, float_slots=(1, 2), activations=1),

    # Constants and shapes.
    _row("Constant", EXACT),
    _row("ConstantOfShape", EXACT, HALF),
    _row("Range", EXACT),
    _row("Shape", EXACT, READS_ANY_FLOAT),
    _row("Size", EXACT, READS_ANY_FLOAT),

    # Subgraphs.
    _row("If", no_half=_SUBGRAPHS),
    _row("Loop", no_half=_SUBGRAPHS),
    _row("Scan", no_half=_SUBGRAPHS),

    # Quantized operators.
    _row("QuantizeLinear", QUANTIZED, QUANTIZES, ROUNDS_ONCE, HALF),
    _row("DequantizeLinear", QUANTIZED, QUANTIZES, ROUNDS_ONCE, HALF),
    _row("DynamicQuantizeLinear", QUANTIZED),
    _row("ConvInteger", QUANTIZED, ROUNDS_ONCE, weights=(1,), products="convolution"),
    _row("MatMulInteger", QUANTIZED, ROUNDS_ONCE, weights=(1,), products="matrix"),
    _row("QLinearConv", QUANTIZED, ROUNDS_ONCE, weights=(3,), products="convolution"),
    _row("QLinearMatMul", QUANTIZED, ROUNDS_ONCE, weights=(3,), products="matrix"),
    _row("DynamicQuantizeLSTM", QUANTIZED, domain=_MICROSOFT, weights=(1, 2),
         products="recurrent"),
    _row("DynamicQuantizeMatMul", QUANTIZED, domain=_MICROSOFT, weights=(1,), products="matrix"),
    _row("MatMulBnb4", QUANTIZED, domain=_MICROSOFT, weights=(1,), products="packed"),
    _row("MatMulIntegerToFloat", QUANTIZED, ROUNDS_ONCE, domain=_MICROSOFT, weights=(1,),
         products="matrix"),
    _row("MatMulNBits", QUANTIZED, domain=_MICROSOFT, weights=(1,), products="packed"),
    _row("QAttention", QUANTIZED, domain=_MICROSOFT, weights=(1,), products="hidden"),
    _row("QGemm", QUANTIZED, ROUNDS_ONCE, domain=_MICROSOFT, weights=(3,), products="matrix"),
    _row("QMoE", QUANTIZED, domain=_MICROSOFT),

    # Fused operators of onnxruntime, and attention in one operator.
    _fused("FusedConv", "convolution"),
    _fused("FusedGemm", "matrix"),
    _fused("FusedMatMul", "matrix"),
    _fused("NhwcFusedConv"),
    _attention("Attention", domain=""),
    _attention("DecoderMaskedMultiHeadAttention"),
    _attention("GroupQueryAttention"),
    _attention("LongformerAttention"),
    _attention("MultiHeadAttention"),
    _attention("PackedAttention"),
    _attention("SparseAttention"),
)  # fmt: skip

OPERATORS = {row.name: row for row in _ROWS}
"""Every row, by type of node. No two operators of different domains share a name, except
Attention, which ONNX and onnxruntime both have."""


def operator(name: str) -> Operator:
    """Return the row of an operator; one without traits for an operator that has none."""
    return OPERATORS.get(name) or Operator(name)


@functools.cache
def having(trait: Trait) -> frozenset[str]:
    """Return the names of all operators with a trait."""
    # Of CLAMPS these are Relu and Clip.
    return frozenset(row.name for row in _ROWS if trait in row.traits)


@functools.cache
def with_int8(kernel: Int8) -> frozenset[str]:
    """Return the names of all operators with a kind of static int8 kernel in onnxruntime."""
    # Of "layer" these are Conv, Gemm and MatMul.
    return frozenset(row.name for row in _ROWS if row.int8 == kernel)


def is_quantized(name: str) -> bool:
    """Return True for an operator that occurs in quantized models only."""
    # onnxruntime has some twenty operators of these two families, which differ in nothing here.
    return (
        name.startswith(("QLinear", "DynamicQuantize")) or Trait.QUANTIZED in operator(name).traits
    )
