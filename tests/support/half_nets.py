"""Networks that fp16 does not hold, and what a naive conversion makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.engine.onnxruntime_cuda import name_half_tensors
from edgepack.ledger import PassResult
from edgepack.passes.half import HalfOptions, half
from edgepack.runtime.session.rounding import round_halves
from support.quantize_nets import Arrays, Net, Steps, gated, images, residual, run


def converted(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], **options: object
) -> PassResult[onnx.ModelProto]:
    """The model after the pass, which onnx's full check accepts."""
    result = half(model, Arrays(**feed), HalfOptions(**options), Steps())  # type: ignore[arg-type]
    onnx.checker.check_model(result.model, full_check=True)
    return result


def naive(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in fp16 but inputs and outputs, as onnxruntime's own tool converts it.

    `min_positive_val` and `max_finite_val` are its defaults: it clamps constants.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    name_half_tensors(made)
    return made


def as_on_gpu(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, every fp16 tensor rounded."""
    return run(onnx.load_model_from_string(round_halves(model.SerializeToString())), feed)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, as onnx infers them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return {**found, **{tensor.name: int(tensor.data_type) for tensor in graph.initializer}}


def kept(result: PassResult[onnx.ModelProto]) -> dict[str, str]:
    """The nodes that stay float32, with the reason."""
    return {node["name"]: node["reason"] for node in result.details["kept"]}


def counting(
    net: Net, inputs: dict[str, list[int | str]], output: str, whole: str
) -> onnx.ModelProto:
    """The model of a net, one of whose inputs is int64."""
    kinds = {name: TensorProto.INT64 if name == whole else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(value, name) for name, value in net.constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets))
    del model.graph.value_info[:]
    model.ir_version = 10
    return model


def loud(gain: float = 500.0) -> onnx.ModelProto:
    """Quiet at both ends and loud in the middle: with pictures of unit size it reaches 1e5.

    The layers after the middle bring it down again, so that the output shows nothing of it.
    """
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    for factor in (gain, gain, 1 / gain, 1 / gain):
        weights = net.constant(net.weights(8, 8, 1, 1) * np.float32(factor))
        x = net.op("Conv", x, weights)
    x = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model({"x": ["n", 3, 16, 16]}, [net.gemm(x, 8, 10)])


def norm(epsilon: float = 1e-12, size: int = 64) -> onnx.ModelProto:
    """A layer norm in its parts between two products, as older exporters write it."""
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(size, size)))
    axes = net.constant(np.array([-1]))
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes))
    squares = net.op("Pow", centred, net.constant(np.float32(2)))
    variance = net.op("ReduceMean", squares, axes)
    spread = net.op("Sqrt", net.op("Add", variance, net.constant(np.float32(epsilon), "epsilon")))
    x = net.op("Div", centred, spread)
    return net.model({"x": ["n", size]}, [net.op("MatMul", x, net.constant(net.weights(size, 10)))])


def attention(mask: float, size: int = 32) -> onnx.ModelProto:
    """One head of attention whose mask is a constant: -inf, or the lowest float32."""
    net = Net()
    query, key, value = (
        net.op("MatMul", "x", net.constant(net.weights(size, size))) for _ in range(3)
    )
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    hidden = net.constant(np.triu(np.ones((8, 8), bool), 1))
    masked = net.op("Where", hidden, net.constant(np.float32(mask), "masked"), scores)
    mixed = net.op("MatMul", net.op("Softmax", masked), value)
    return net.model({"x": ["n", 8, size]}, [net.gemm(net.op("Flatten", mixed), 8 * size, 10)])


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


# Each with the samples that calibrate and judge it, along axis 0 of its one input x.
NETS: dict[str, tuple[Callable[[], onnx.ModelProto], np.ndarray]] = {
    "residual": (residual, images(256)),
    "gated": (gated, images(256)),
    "loud": (loud, images(256)),
    "norm": (norm, _random(256, 64)),
    "attention": (lambda: attention(-np.inf), _random(256, 8, 32)),
}
