"""Networks with outputs that a plain SNR judges wrongly: a detector, an offset, a label map."""

from __future__ import annotations

import numpy as np
import onnx

from support.quantize_nets import Net


def detector() -> onnx.ModelProto:
    """Boxes in pixels and class scores in one output, as most detectors are exported.

    One channel before the scores is loud and means little to them: eight bits for all of its
    tensor leave nothing of the others.
    """
    net = Net(3)
    x = net.op("Relu", net.conv("x", 3, 16))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    boxes = net.op("Mul", net.conv(x, 16, 4, 1), net.constant(np.float32(80)))
    x = net.conv(x, 16, 32)
    loud = net.constants[net.nodes[-1].input[2]]
    loud[3] = 900.0
    x = net.op("Relu", x)
    scores = net.conv(x, 32, 20, 1)
    weight = net.constants[net.nodes[-1].input[1]]
    weight[:, 3] = 1e-4
    scores = net.op("Sigmoid", scores)
    both = net.op("Concat", boxes, scores, axis=1)
    flat = net.op("Reshape", both, net.constant(np.array([0, 24, 64])))
    return net.model({"x": ["batch", 3, 16, 16]}, [flat])


def offset_head() -> onnx.ModelProto:
    """A regression whose answers are 300 and a little; the little is of a quiet channel."""
    net = Net(4)
    x = net.conv("x", 3, 16)
    bias = net.constants[net.nodes[-1].input[2]]
    bias[3] = 600.0
    x = net.op("Relu", x)
    x = net.op("Relu", net.conv(x, 16, 16, 1))
    weight = net.constants[net.nodes[-2].input[1]]
    weight[:, 3] = 1e-4
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.gemm(x, 16, 1)
    net.constants[net.nodes[-1].input[2]][:] = 300.0
    return net.model({"x": ["batch", 3, 16, 16]}, [x])


def label_map() -> onnx.ModelProto:
    """The class of every pixel, as an integer."""
    net = Net(5)
    x = net.op("Relu", net.conv("x", 3, 16))
    x = net.op("ArgMax", net.conv(x, 16, 6), axis=1, keepdims=0)
    return net.model({"x": ["batch", 3, 16, 16]}, [x])
