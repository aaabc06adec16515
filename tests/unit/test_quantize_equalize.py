"""Channels of like size: the float network computes the same, and int8 loses less."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.data.samples import Batch
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.equalize.restorers import FACTOR
from edgepack.passes.quantize.equalize.scaling import equalize
from edgepack.passes.quantize.prepare import prepare
from edgepack.passes.quantize.static.placement import place
from support.quantize_nets import Arrays, Net, Steps, gated, images, residual, run, snr_db, stress

BOTH = QuantizeOptions(equalize="both")


def equalized(
    model: onnx.ModelProto, values: np.ndarray, options: QuantizeOptions = BOTH
) -> tuple[onnx.ModelProto, dict]:
    prepared = prepare(model)
    points = place(GraphView(prepared), ()).points
    return equalize(prepared, points, Arrays(x=values), options, lambda _count: None)


class OneByOne:
    """Samples of a network without a batch axis that varies; `axis`: whether there is one."""

    origin = "arrays"

    def __init__(self, values: np.ndarray, axis: bool = True) -> None:
        self.values, self.axis = values, axis

    def batches(self, size: int) -> Iterator[Batch]:
        for value in self.values:
            yield Batch({"x": value[None] if self.axis else value}, None, 1)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, values: np.ndarray) -> None:
    """Up to the rounding of factors that are no powers of two."""
    for real, found in zip(run(before, {"x": values}), run(after, {"x": values}), strict=True):
        assert np.abs(real - found).max() <= 1e-5 * np.abs(real).max()


def uneven(channels: int, seed: int = 5) -> np.ndarray:
    """Factors from a hundredth to one."""
    return 10 ** np.random.default_rng(seed).uniform(-2, 0, channels).astype(np.float32)


def badly_scaled(net: Net, x: str, cin: int, cout: int, kernel: int = 3, groups: int = 1) -> str:
    """A convolution whose channels differ a hundredfold in size."""
    made = net.conv(x, cin, cout, kernel, groups)
    weight, bias = net.nodes[-1].input[1:]
    factors = uneven(cout)
    net.constants[weight] *= factors[:, None, None, None]
    net.constants[bias] *= factors
    return made


def reading(net: Net, x: str, cin: int, cout: int, kernel: int = 3) -> str:
    """A convolution that reads what `badly_scaled` gives as if all channels were alike."""
    made = net.conv(x, cin, cout, kernel)
    net.constants[net.nodes[-1].input[1]] /= uneven(cin)[:, None, None]
    return made


def chain_of(between: Callable[[Net, str], str]) -> onnx.ModelProto:
    """A badly scaled convolution, what is to be tested, and a convolution that reads it."""
    net = Net(2)
    x = between(net, badly_scaled(net, "x", 3, 12))
    return net.model({"x": ["n", 3, 16, 16]}, [reading(net, x, 12, 5)])


def rectified(net: Net, x: str) -> str:
    return net.op("Relu", x)


def depthwise(net: Net, x: str) -> str:
    return net.op("Relu", net.conv(net.op("Relu", x), 12, 12, 3, groups=12))


def leaking(net: Net, x: str) -> str:
    return net.op("LeakyRelu", x, alpha=0.1)


def pooled(net: Net, x: str) -> str:
    return net.op("MaxPool", net.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])


def summed(net: Net, x: str) -> str:
    """A residual block: sum and both of its operands are scaled alike."""
    return net.op("Add", x, badly_scaled(net, net.op("Relu", x), 12, 12))


def offset(net: Net, x: str) -> str:
    """A constant of each channel is divided too."""
    return net.op("Add", x, net.constant(net.weights(1, 12, 1, 1)))


def multiplied(net: Net, x: str) -> str:
    """A constant of each channel takes the factor itself."""
    return net.op("Mul", x, net.constant(1 + 0 * net.weights(1, 12, 1, 1)))


def excited(net: Net, x: str) -> str:
    """What is multiplied is scaled, its gate is not."""
    x = net.op("Relu", x)
    squeezed = reading(net, net.op("GlobalAveragePool", x), 12, 4, 1)
    return net.op("Mul", x, net.op("Sigmoid", net.conv(squeezed, 4, 12, 1)))


SCALABLE = [rectified, depthwise, leaking, pooled, summed, offset, multiplied, excited]


@pytest.mark.parametrize("between", SCALABLE, ids=lambda f: f.__name__)
def test_badly_scaled_channels_gain(between: Callable[[Net, str], str]) -> None:
    model, values = chain_of(between), images(40)
    made, figures = equalized(model, values)
    assert_same(prepare(model), made, values)
    assert figures["scaled"] >= 1
    assert figures["widest"] > 5
    other = images(40, seed=2)
    real = run(model, {"x": other})[0]
    found = []
    for kind in ("none", "cross-layer"):
        options = QuantizeOptions(equalize=kind, range="full", rounding="nearest")
        result = quantize(model, Arrays(x=values), options, Steps())
        found.append(snr_db(real, run(result.model, {"x": other})[0]))
    assert found[1] > found[0] + 2, found


def clipped(net: Net, x: str) -> str:
    return net.op("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))


def curved(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def squared(net: Net, x: str) -> str:
    return net.op("Mul", x, x)


def one_for_all(net: Net, x: str) -> str:
    return net.op("Add", x, net.constant(np.float32(0.5).reshape(1)))


def grouped(net: Net, x: str) -> str:
    return net.conv(x, 12, 12, 3, groups=3)


def shared(net: Net, x: str) -> str:
    """Weights that two convolutions read."""
    weight = net.constant(net.weights(12, 12, 1, 1))
    return net.op("Conv", net.op("Tanh", net.op("Conv", x, weight)), weight)


def interleaved(net: Net, x: str) -> str:
    first = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    return net.op("Concat", f"{first}_1", first, axis=1)


BOUND = [
    (clipped, "Clip blocks it"),
    (curved, "Sigmoid blocks it"),
    (squared, "Mul blocks it"),
    (one_for_all, "one value is added to all channels"),
    (grouped, "grouped convolution"),
    (shared, "its weights have several readers"),
    (interleaved, "Concat blocks it"),
]


@pytest.mark.parametrize(("between", "reason"), BOUND, ids=lambda f: getattr(f, "__name__", ""))
def test_what_is_bound_is_left(between: Callable[[Net, str], str], reason: str) -> None:
    model, values = chain_of(between), images(8)
    made, figures = equalized(model, values)
    assert_same(prepare(model), made, values)
    assert figures["left"][reason] >= 1
    assert figures["left"]["the network's input"] == 1


def test_what_the_network_gives_is_not_scaled() -> None:
    net = Net(2)
    x = net.op("Relu", badly_scaled(net, "x", 3, 12))
    model = net.model({"x": ["n", 3, 16, 16]}, [x, reading(net, x, 12, 5)])
    made, figures = equalized(model, images(8))
    assert figures["scaled"] == 0
    assert figures["left"]["the network's output"] == 1
    assert_same(prepare(model), made, images(8))


@pytest.mark.parametrize("make", [residual, gated, stress])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_whole_networks_compute_the_same(make: Callable[[], onnx.ModelProto], alpha: float) -> None:
    model, values = make(), images(20)
    made, _ = equalized(model, values, QuantizeOptions(equalize="both", alpha=alpha))
    assert_same(prepare(model), made, values)


def test_a_channel_that_is_always_zero() -> None:
    model = chain_of(rectified)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if value.shape in ((12, 3, 3, 3), (12,)):
            value[4] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    made, figures = equalized(model, images(20))
    assert figures["scaled"] == 1
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in made.graph.initializer)
    assert_same(prepare(model), made, images(20))


def test_channels_of_like_size_are_left() -> None:
    net = Net(2)
    weight = np.tile(net.weights(1, 3, 1, 1), (12, 1, 1, 1))
    x = net.op("Relu", net.op("Conv", "x", net.constant(weight)))
    net_model = net.model(
        {"x": ["n", 3, 16, 16]},
        [net.op("Conv", x, net.constant(np.tile(net.weights(5, 1, 1, 1), (1, 12, 1, 1))))],
    )
    made, figures = equalized(net_model, images(8))
    assert figures["left"]["scaling would not lower the noise"] == 1
    before = {t.name: t.raw_data for t in prepare(net_model).graph.initializer}
    assert {t.name: t.raw_data for t in made.graph.initializer} == before


def normalised(residual_reader: bool, opset: int = 18) -> onnx.ModelProto:
    """Two layers read a LayerNormalization of uneven gain; with the sum of a BERT, a third does."""
    net = Net(3)
    width = 24
    gain, shift = net.constant(uneven(width)), net.constant(net.weights(width, 4)[:, 0])
    x = net.op("LayerNormalization", "x", gain, shift, axis=-1)
    weights = [net.weights(width, width) / uneven(width)[:, None] for _ in range(2)]
    first, second = (net.op("MatMul", x, net.constant(w)) for w in weights)
    y = net.op("Mul", net.op("Tanh", first), second)
    if residual_reader:
        y = net.op("Add", y, x)
    return net.model({"x": ["n", 7, width]}, [y], opset)


def tokens(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 7, 24)).astype(np.float32)


@pytest.mark.parametrize("residual_reader", [False, True])
def test_smoothing_folds_into_the_normalization(residual_reader: bool) -> None:
    model, values = normalised(residual_reader), tokens(50)
    made, figures = equalized(model, values, QuantizeOptions(equalize="smooth"))
    assert (figures["scaled"], figures["channels"]) == (1, 24)
    assert_same(prepare(model), made, values)
    # Where the sum reads it too, one Mul takes the factors back.
    added = [n for n in made.graph.node if n.op_type == "Mul" and n.input[-1].endswith(FACTOR)]
    assert len(added) == residual_reader
    other = tokens(50, seed=2)
    real = run(model, {"x": other})[0]
    found = []
    for kind in ("none", "cross-layer", "smooth"):
        options = QuantizeOptions(equalize=kind, range="full", rounding="nearest")
        result = quantize(model, Arrays(x=values), options, Steps())
        found.append(snr_db(real, run(result.model, {"x": other})[0]))
    assert found[0] == found[1]
    assert found[2] > found[0] + 2, found


def test_smoothing_that_gains_nothing_leaves_no_operator() -> None:
    model = normalised(True)
    # Every channel alike already.
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ones_like(value), tensor.name))
    values = np.tile(tokens(8)[..., :1], (1, 1, 24)) * np.linspace(-1, 1, 24, dtype=np.float32)
    made, figures = equalized(model, values, QuantizeOptions(equalize="smooth"))
    assert figures["scaled"] == 0
    assert len(made.graph.node) == len(prepare(model).graph.node)
    assert_same(prepare(model), made, values)


def test_the_formula_is_that_of_smoothquant() -> None:
    """s = A^alpha / B^(1 - alpha), of one layer whose rows all have the largest weight 1."""
    net = Net(1)
    gain = np.array([1, 0.25, 0.5, 0.125], np.float32)
    x = net.op("LayerNormalization", "x", net.constant(gain), axis=-1)
    weight = np.array([[1, 0.5, 1, 1], [0.25, 1, 0.5, 1]], np.float32).T
    model = net.model({"x": ["n", 3, 4]}, [net.op("MatMul", x, net.constant(weight))])
    values = np.random.default_rng(0).standard_normal((64, 3, 4)).astype(np.float32)
    made, _ = equalized(model, values, QuantizeOptions(equalize="smooth", alpha=0.5))
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, made)
    )
    factor = (after["constant_1"] / before["constant_1"])[:, 0]
    largest = np.abs(run(net_output(model, x), {"x": values})[0]).max(axis=(0, 1))
    size, reach = largest / largest.max(), np.abs(weight).max(axis=1)
    assert factor == pytest.approx(np.sqrt(size / reach), rel=1e-5)
    assert after["constant_0"] == pytest.approx(gain / factor, rel=1e-5)


def net_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model, giving another of its tensors."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.append(onnx.ValueInfoProto(name=name))
    return made


@pytest.mark.parametrize("opset", [17, 18])
def test_it_runs_in_both_forms_of_reductions(opset: int) -> None:
    model, values = normalised(True, opset), tokens(20)
    made, figures = equalized(model, values)
    assert figures["scaled"] == 1
    assert_same(prepare(model), made, values)


def test_symmetric_activations_gain_too() -> None:
    """TensorRT's scheme: s8 around zero."""
    model, values = chain_of(summed), images(40)
    real = run(model, {"x": images(40, seed=2)})[0]
    found = []
    for kind in ("none", "cross-layer"):
        options = QuantizeOptions(scheme="tensorrt", range="full", equalize=kind)
        result = quantize(model, Arrays(x=values), options, Steps())
        found.append(snr_db(real, run(result.model, {"x": images(40, seed=2)})[0]))
    assert found[1] > found[0] + 2, found


def test_the_model_given_stays_as_it_is() -> None:
    model = prepare(chain_of(summed))
    before = model.SerializeToString()
    equalize(model, place(GraphView(model), ()).points, Arrays(x=images(4)), BOTH, lambda _n: None)
    assert model.SerializeToString() == before


def test_the_ledger_is_told() -> None:
    options = QuantizeOptions(equalize="both", alpha=0.6)
    result = quantize(chain_of(clipped), Arrays(x=images(8)), options, Steps())
    figures = result.details["equalize"]
    assert (figures["kind"], figures["alpha"]) == ("both", 0.6)
    assert figures["left"] == {"the network's input": 1, "Clip blocks it": 1}
    [note] = [note for note in result.notes if note.startswith("Equalized (both)")]
    assert "2 not scaled: " in note
    plain = quantize(chain_of(clipped), Arrays(x=images(8)), QuantizeOptions(), Steps())
    assert plain.details["equalize"] is None
    assert "equalize" in result.details["seconds"]


def test_a_constant_that_is_divided_is_not_scaled() -> None:
    net = Net(2)
    divisor = net.op("Add", net.op("Abs", net.conv("x", 3, 12)), net.constant(np.float32(1)))
    constant = net.constant(np.abs(net.weights(1, 12, 16, 16)) + np.float32(0.5))
    x = net.op("Add", badly_scaled(net, "x", 3, 12), net.op("Div", constant, divisor))
    model = net.model({"x": [1, 3, 16, 16]}, [reading(net, net.op("Relu", x), 12, 5)])
    prepared, values = prepare(model), images(8)
    samples = OneByOne(values)
    points = place(GraphView(prepared), ()).points
    made, figures = equalize(prepared, points, samples, BOTH, lambda _count: None)
    assert_same(prepared, made, values[:1])
    assert figures["left"]["Div blocks it"] >= 1


def test_products_of_a_vector_are_equalized_too() -> None:
    net = Net(2)
    weight = net.weights(32, 24) * uneven(24)
    x = net.op("Relu", net.op("MatMul", "x", net.constant(weight)))
    x = net.op("MatMul", x, net.constant(net.weights(24, 8) / uneven(24)[:, None]))
    model = net.model({"x": [32]}, [x])
    values = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    prepared, samples = prepare(model), OneByOne(values, axis=False)
    points = place(GraphView(prepared), ()).points
    made, figures = equalize(prepared, points, samples, BOTH, lambda _count: None)
    assert figures["scaled"] == 1
    for value in values:
        assert_same(prepared, made, value)


def test_a_node_that_reads_nothing_stands_in_the_way() -> None:
    net = Net(2)
    noise = net.op("RandomUniform", shape=[12, 1, 1], high=0.0, low=0.0)
    x = net.op("Relu", net.op("Add", badly_scaled(net, "x", 3, 12), noise))
    model, values = net.model({"x": ["n", 3, 16, 16]}, [reading(net, x, 12, 5)]), images(8)
    made, figures = equalized(model, values)
    assert figures["left"]["RandomUniform blocks it"] == 1
    assert_same(prepare(model), made, values)
