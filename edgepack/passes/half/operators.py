"""Tables of the operators that compute in fp16.

They have fp16 kernels both in onnxruntime's CUDA provider (docs/OperatorKernels.md in its sources)
and in TensorRT. An operator in none of these tables stays float32.
"""

from __future__ import annotations

LARGEST = 65504.0
"""The largest fp16 number."""

SMALLEST_NORMAL = 2.0**-14
"""Below it an fp16 number loses bits, one for each halving, until 2**-24."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators that move or select values and compute nothing.
MOVES = _names(
    "Concat ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND "
    "GlobalMaxPool Identity MaxPool Pad ReduceMax ReduceMin Reshape ScatterElements ScatterND "
    "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
)
# Each output value depends on one or two input values, so only inputs and outputs can overflow.
ELEMENTWISE = _names(
    "Abs Add BatchNormalization Cast Clip Cos Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu "
    "Log Max Min Mul Neg PRelu Pow Reciprocal Relu Resize Selu Sigmoid Sign Sin Softplus Softsign "
    "Sqrt Sub Tanh ThresholdedRelu"
)
# Sums of many values may overflow before they reach a small result; `sums` bounds them.
LAYERS = _names("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN")
SUMS = LAYERS | _names(
    "AveragePool GlobalAveragePool InstanceNormalization LayerNormalization LogSoftmax "
    "RMSNormalization ReduceL1 ReduceL2 ReduceMean ReduceSum ReduceSumSquare Softmax Sum"
)
QUANTIZERS = _names("QuantizeLinear DequantizeLinear")
HALF = MOVES | ELEMENTWISE | SUMS | QUANTIZERS

# Readers of either type: their outputs are not floats.
READERS = _names("IsNaN Shape Size")
# Input slot whose tiny values give a huge result. Pow is handled apart: it depends on the exponent.
DIVISORS = {"Div": 1, "Reciprocal": 0, "Log": 0}
# A tiny constant keeps the result of these away from 0, like the epsilon of a norm.
FLOORS = _names("Add Clip Max")
# A larger angle is rounded by more than 2**-9, a ninth of a degree (seen in rotary embeddings).
ANGLES = _names("Cos Sin")
LARGEST_ANGLE = 8.0
# fp16 skips some whole numbers above this one.
LARGEST_WHOLE = 2048.0
# Input slots that are always float32: the region and the scales of Resize.
FLOAT_INPUTS = {"Resize": (1, 2)}

WHY_NOT = {
    **dict.fromkeys(_names("If Loop Scan"), "the tensors in its subgraphs are not measured"),
    **dict.fromkeys(
        _names(
            "ArgMax ArgMin Ceil CumSum Equal Floor Greater GreaterOrEqual Less LessOrEqual Mod "
            "NonMaxSuppression Round TopK"
        ),
        "it compares or truncates values that fp16 may make equal",
    ),
}


def why_not(domain: str, operator: str) -> str:
    """Return the reason why an operator stays float32; "" if it need not."""
    if domain not in ("", "ai.onnx"):
        return f"{domain}.{operator} is not a standard ONNX operator"
    if operator in HALF:
        return ""
    return WHY_NOT.get(operator, "it has no known fp16 kernel in CUDA and TensorRT")
