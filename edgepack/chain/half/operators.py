"""Which operators compute in fp16, and how.

Those that have fp16 kernels in onnxruntime's CUDA provider (docs/OperatorKernels.md of its
sources) and in TensorRT as well. An operator that stands in no table here stays float32.
"""

from __future__ import annotations

LARGEST = 65504.0
"""The largest fp16 number."""

SMALLEST_NORMAL = 2.0**-14
"""Below it an fp16 number loses bits, one for each halving, until 2**-24."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values are moved or chosen, not computed.
MOVES = _names(
    "Concat ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND "
    "GlobalMaxPool Identity MaxPool Pad ReduceMax ReduceMin Reshape ScatterElements ScatterND "
    "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
)
# One value from one value, or from two: what can overflow is what goes in or comes out.
ELEMENTWISE = _names(
    "Abs Add BatchNormalization Cast Clip Cos Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu "
    "Log Max Min Mul Neg PRelu Pow Reciprocal Relu Resize Selu Sigmoid Sign Sin Softplus Softsign "
    "Sqrt Sub Tanh ThresholdedRelu"
)
# Sums of many values, which may overflow on the way to a small result: `sums` bounds them.
LAYERS = _names("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN")
SUMS = LAYERS | _names(
    "AveragePool GlobalAveragePool InstanceNormalization LayerNormalization LogSoftmax "
    "RMSNormalization ReduceL1 ReduceL2 ReduceMean ReduceSum ReduceSumSquare Softmax Sum"
)
QUANTIZERS = _names("QuantizeLinear DequantizeLinear")
HALF = MOVES | ELEMENTWISE | SUMS | QUANTIZERS

# What they read may be of either type: they make no float of it.
READERS = _names("IsNaN Shape Size")
# Which input makes a huge result where it is tiny; that of Pow does where its exponent is negative.
DIVISORS = {"Div": 1, "Reciprocal": 0, "Log": 0}
# A tiny constant keeps the result of these from 0: the epsilon of a norm.
FLOORS = _names("Add Clip Max")
# An angle beyond this is rounded by more than 2**-9, a ninth of a degree: rotary embeddings.
ANGLES = _names("Cos Sin")
LARGEST_ANGLE = 8.0
# Whole numbers beyond this are not all fp16 numbers.
LARGEST_WHOLE = 2048.0
# Inputs that are float32 whatever the others are: Resize's region and scales.
FLOAT_INPUTS = {"Resize": (1, 2)}

WHY_NOT = {
    **dict.fromkeys(_names("If Loop Scan"), "what its subgraphs hold is not measured"),
    **dict.fromkeys(
        _names(
            "ArgMax ArgMin Ceil CumSum Equal Floor Greater GreaterOrEqual Less LessOrEqual Mod "
            "NonMaxSuppression Round TopK"
        ),
        "it decides between values that fp16 may make equal",
    ),
}


def why_not(domain: str, operator: str) -> str:
    """Why an operator stays float32; "" where it need not."""
    if domain not in ("", "ai.onnx"):
        return f"{domain}.{operator} is no operator of ONNX itself"
    if operator in HALF:
        return ""
    return WHY_NOT.get(operator, "no fp16 kernel of it is known on CUDA and TensorRT")
