"""fp16: what becomes it, what stays float32 and why, and that the numbers are those measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.engine import tensorrt_rtx
from edgepack.passes.half import HalfOptions, half
from edgepack.passes.half.measurements import measure_array
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.half_nets import (
    NETS,
    as_on_gpu,
    attention,
    converted,
    counting,
    kept,
    loud,
    naive,
    norm,
    types,
)
from support.quantize_nets import Arrays, Net, Steps, gated, images, residual, run, snr_db

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.mark.parametrize("net", [residual, gated])
def test_a_quiet_network_becomes_fp16_whole(net) -> None:
    feed = {"x": images(16)}
    model = net()
    before = model.SerializeToString(deterministic=True)
    result = converted(model, feed)
    assert model.SerializeToString(deterministic=True) == before
    assert result.details["kept"] == []
    assert result.details["nodes_half"] == len(model.graph.node)
    # One Cast on the way in, one on the way out.
    assert result.details["casts"] == 2
    found = types(result.model)
    assert [found[v.name] for v in (*result.model.graph.input, *result.model.graph.output)] == [
        FLOAT, FLOAT,
    ]  # fmt: skip
    weights = [t for t in result.model.graph.initializer if t.data_type != TensorProto.INT64]
    assert {t.data_type for t in weights} == {HALF}
    assert {t.name for t in weights} <= {t.name for t in model.graph.initializer}
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 60


def test_the_same_model_and_samples_give_the_same_bytes() -> None:
    feed = {"x": images(8)}
    one, other = (
        converted(residual(), feed).model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert one == other


def test_what_overflows_stays_float32_and_is_named_with_its_number() -> None:
    model, feed = loud(), {"x": images(16)}
    result = converted(model, feed)
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    middle = layers[2]
    opened.graph.output.append(onnx.ValueInfoProto(name=middle.output[0]))
    peak = float(np.abs(run(opened, feed)[1]).max())
    assert peak > 65504
    reasons = kept(result)
    assert reasons[middle.name] == f"its output {middle.output[0]} reaches {peak:.3g}"
    assert reasons[layers[3].name] == f"its input {middle.output[0]} reaches {peak:.3g}"
    assert any(f"reaches {peak:.3g}" in note for note in result.notes)
    # The quiet ends of the network are fp16 all the same.
    assert not {layers[0].name, layers[5].name} & set(reasons)
    real = run(model, feed)[0]
    assert snr_db(real, as_on_gpu(result.model, feed)[0]) > 55
    # Without measuring, the middle is infinite; and onnxruntime on a CPU does not show it.
    everything = naive(model)
    assert not np.isfinite(as_on_gpu(everything, feed)[0]).all()
    assert snr_db(real, run(everything, feed)[0]) > 50


def test_a_margin_is_kept_and_can_be_chosen() -> None:
    net = Net()
    model = net.model({"x": ["n", 8]}, [net.op("MatMul", "x", net.constant(np.eye(8, dtype="f")))])
    feed = {"x": np.full((4, 8), 20000, np.float32)}
    with pytest.raises(Exception, match="half-nothing-to-do"):
        converted(model, feed)
    assert converted(model, feed, margin=2).details["kept"] == []
    assert converted(model, feed, margin=2).details["limit"] == 32752


def test_a_sum_that_overflows_on_its_way_to_a_small_result() -> None:
    net = Net()
    weights = np.ones((64, 4), np.float32) * 100
    weights[::2] *= -1
    x = net.op("MatMul", "x", net.constant(weights))
    model = net.model({"x": ["n", 64]}, [net.op("MatMul", x, net.constant(net.weights(4, 4)))])
    feed = {"x": np.full((2, 64), 10, np.float32)}
    assert np.abs(run(model, feed)[0]).max() < 1
    reasons = kept(converted(model, feed))
    assert reasons == {"n_matmul_0": "its sums may reach 6.4e+04"}


def test_norms_keep_their_epsilon_and_do_not_divide_by_zero() -> None:
    model = norm(1e-12)
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    result = converted(model, {"x": x})
    reasons = kept(result)
    assert reasons["n_add_5"] == "its constant epsilon is 1e-12, which fp16 holds as 0"
    assert types(result.model)["epsilon"] == FLOAT
    assert snr_db(run(model, {"x": x})[0], as_on_gpu(result.model, {"x": x})[0]) > 55
    flat = {"x": np.zeros((1, 64), np.float32)}
    assert np.isfinite(as_on_gpu(result.model, flat)[0]).all()
    without = norm(1e-12)
    # A converter that leaves the epsilon to fp16 divides 0 by 0.
    broken = half(without, Arrays(x=x), HalfOptions(), Steps()).model
    for tensor in broken.graph.initializer:
        if tensor.name == "epsilon":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0), "epsilon"))
    assert np.isnan(as_on_gpu(broken, flat)[0]).all()


def test_an_epsilon_that_fp16_holds_does_not_hold_anything_back() -> None:
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    assert kept(converted(norm(1e-5), {"x": x})) == {}


def test_a_variance_that_overflows_in_a_fused_norm() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(np.eye(16, dtype=np.float32)))
    scale = net.constant(np.ones(16, np.float32))
    x = net.op("LayerNormalization", x, scale, epsilon=1e-12)
    model = net.model({"x": ["n", 16]}, [net.op("MatMul", x, net.constant(net.weights(16, 4)))])
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32) * 300
    variance = float(np.square(x).mean(1).max())
    assert variance > 65504
    reasons = kept(converted(model, {"x": x}))
    # The epsilon of a fused norm is an attribute: it stays a float32 everywhere.
    assert reasons == {"n_layernormalization_1": f"its variance may reach {variance:.3g}"}
    assert kept(converted(model, {"x": x / 100})) == {}


def test_values_too_small_for_fp16() -> None:
    net = Net()
    small = net.op("Mul", "x", net.constant(np.float32(0.001)))
    x = net.op("MatMul", small, net.constant(net.weights(8, 8) * 1000))
    model = net.model({"x": ["n", 8]}, [net.op("MatMul", x, net.constant(net.weights(8, 8)))])
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    reasons = kept(converted(model, {"x": x * 1e-3}))
    assert "underflows: fp16 keeps" in reasons["n_matmul_1"]
    assert "n_matmul_2" not in reasons
    assert kept(converted(model, {"x": x * 100})) == {}


def test_a_divisor_that_fp16_would_round_to_nothing() -> None:
    net = Net()
    one = net.op("MatMul", "x", net.constant(np.eye(4, dtype=np.float32)))
    other = net.op("MatMul", "y", net.constant(np.eye(4, dtype=np.float32)))
    ratio = net.op("Div", one, other)
    model = net.model(
        {"x": ["n", 4], "y": ["n", 4]}, [net.op("MatMul", ratio, net.constant(net.weights(4, 4)))]
    )
    y = np.ones((4, 4), np.float32)
    y[2, 1] = 1e-5
    reasons = kept(converted(model, {"x": np.full((4, 4), 0.01, np.float32), "y": y}))
    assert reasons["n_div_2"] == "its input matmul_1 is a divisor as small as 1e-05"
    # What makes the divisor must not round it either.
    assert reasons["n_matmul_1"] == "its output matmul_1 is a divisor as small as 1e-05"
    assert set(reasons) == {"n_div_2", "n_matmul_1"}


def test_a_negative_power_divides_too() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(np.eye(4, dtype=np.float32)))
    root = net.op("Pow", x, net.constant(np.float32(-0.5)))
    model = net.model({"x": ["n", 4]}, [net.op("MatMul", root, net.constant(net.weights(4, 4)))])
    x = np.ones((4, 4), np.float32)
    x[1, 2] = 1e-6
    assert "is a divisor as small as 1e-06" in kept(converted(model, {"x": x}))["n_pow_1"]
    assert kept(converted(model, {"x": x + 1})) == {}


def test_an_initializer_that_can_be_fed_is_no_constant() -> None:
    model = residual()
    weight = next(t for t in model.graph.initializer if t.name == "constant_0")
    shape = list(weight.dims)
    model.graph.input.append(helper.make_tensor_value_info("constant_0", FLOAT, shape))
    feed = {"x": images(8)}
    result = converted(model, feed)
    assert kept(result) == {}
    assert types(result.model)["constant_0"] == FLOAT
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_rotary_angles_are_not_rounded() -> None:
    net = Net()
    positions = net.op("Cast", "positions", to=FLOAT)
    angles = net.op("Mul", positions, net.constant(np.linspace(1, 0.1, 8, dtype=np.float32)))
    x = net.op("Mul", "x", net.op("Cos", angles))
    y = net.op("MatMul", x, net.constant(net.weights(8, 8)))
    model = counting(net, {"x": ["n", 8], "positions": ["n", 1]}, y, whole="positions")
    feed = {
        "x": np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32),
        "positions": np.arange(900)[:, None],
    }
    result = converted(model, feed)
    assert "is an angle of up to 899" in kept(result)["n_cos_2"]
    assert "is an angle of up to 899" in kept(result)["n_mul_1"]
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55
    assert snr_db(run(model, feed)[0], as_on_gpu(naive(model), feed)[0]) < 30


def test_whole_numbers_that_fp16_does_not_count_to() -> None:
    net = Net()
    x = net.op("MatMul", net.op("Cast", "count", to=FLOAT), net.constant(np.eye(2, dtype="f")))
    y = net.op("MatMul", x, net.constant(net.weights(2, 2) / 100))
    model = counting(net, {"count": ["n", 2]}, y, whole="count")
    feed = {"count": np.array([[2049, 1], [4, 3000]])}
    assert kept(converted(model, feed))["n_cast_0"] == (
        "its output cast_0 counts to 3000; fp16 counts only to 2048"
    )
    assert kept(converted(model, {"count": feed["count"] // 2})) == {}


def test_a_mask_of_minus_infinity_is_fp16_and_the_lowest_float32_is_not() -> None:
    x = np.random.default_rng(0).standard_normal((16, 8, 32)).astype(np.float32)
    infinite = converted(attention(-np.inf), {"x": x})
    assert kept(infinite) == {}
    lowest = converted(attention(float(np.finfo(np.float32).min)), {"x": x})
    reasons = kept(lowest)
    assert {name.split("_")[1] for name in reasons} == {"where", "softmax"}
    assert all("3.4e+38" in reason for reason in reasons.values())
    for result, mask in ((infinite, -np.inf), (lowest, float(np.finfo(np.float32).min))):
        real = run(attention(mask), {"x": x})[0]
        assert snr_db(real, as_on_gpu(result.model, {"x": x})[0]) > 55


def test_nan_inside_is_left_alone_and_nan_at_the_end_is_an_error() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(4, 4)))
    root = net.op("Sqrt", x)
    clean = net.op("Where", net.op("IsNaN", root), net.constant(np.float32(0)), root)
    model = net.model({"x": ["n", 4]}, [net.op("MatMul", clean, net.constant(net.weights(4, 4)))])
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    reasons = kept(converted(model, {"x": x}))
    assert reasons["n_sqrt_1"] == "its output sqrt_1 holds NaN"
    assert not [name for name in reasons if "matmul" in name]


def test_two_readers_of_one_constant_may_want_it_in_two_types() -> None:
    net = Net()
    shared = net.constant(np.eye(8, dtype=np.float32) * 300, "shared")
    quiet = net.op("MatMul", "x", shared)
    loud_one = net.op("MatMul", net.op("MatMul", quiet, shared), net.constant(net.weights(8, 8)))
    back = net.op("MatMul", loud_one, net.constant(net.weights(8, 8) / 90000))
    model = net.model({"x": ["n", 8]}, [net.op("MatMul", back, net.constant(net.weights(8, 8)))])
    feed = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    result = converted(model, feed)
    found = {t.name: t.data_type for t in result.model.graph.initializer}
    assert (found["shared"], found["shared_half"]) == (FLOAT, HALF)
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_what_is_no_arithmetic_in_float_stays_as_it_is() -> None:
    """Shapes, indices, Resize's scales, a Clip without a bound, fills, a split."""
    net = Net()
    x = net.op("Clip", net.conv("x", 3, 8), "", net.constant(np.float32(2)))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    x = net.op("Resize", x, "", scales, mode="nearest")
    size = net.op(
        "Slice", net.op("Shape", x), net.constant(np.array([0])), net.constant(np.array([2]))
    )
    ones = net.constant(np.array([1, 1]))
    shape = net.op("Concat", size, ones, axis=0)
    fill = net.op(
        "ConstantOfShape", shape, value=numpy_helper.from_array(np.array([0.5], np.float32))
    )
    x = net.op("Add", x, fill)
    first = net.op("Split", x, net.constant(np.array([4, 4])), axis=1, outputs=2)
    x = net.op("Concat", f"{first}_1", first, axis=1)
    picked = net.op("Gather", x, net.constant(np.array([3, 0, 1])), axis=1)
    flat = net.op("Reshape", picked, net.constant(np.array([0, -1])))
    model = net.model({"x": ["n", 3, 8, 8]}, [net.gemm(flat, 3 * 256, 4)])
    feed = {"x": images(8, size=8)}
    result = converted(model, feed)
    assert kept(result) == {}
    assert types(result.model)["scales"] == FLOAT
    assert result.details["casts"] == 2
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_branches_stay_float32_and_see_what_they_took_from_outside() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(8, 8)))
    bodies = []
    for kind in ("Neg", "Abs"):
        inner = helper.make_node(kind, [x], [f"{kind}_out"])
        output = helper.make_tensor_value_info(f"{kind}_out", FLOAT, None)
        bodies.append(helper.make_graph([inner], kind, [], [output]))
    positive = net.op("Cast", net.op("ReduceMax", x, keepdims=0), to=TensorProto.BOOL)
    branch = net.op("If", positive, then_branch=bodies[0], else_branch=bodies[1])
    model = net.model({"x": ["n", 8]}, [net.op("MatMul", branch, net.constant(net.weights(8, 8)))])
    feed = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    result = converted(model, feed)
    assert kept(result) == {"n_if_3": "the tensors in its subgraphs are not measured"}
    assert types(result.model)[x] == FLOAT
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_an_output_that_is_read_inside_too_keeps_its_name_and_type() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(8, 8)))
    y = net.op("MatMul", x, net.constant(net.weights(8, 8)))
    model = net.model({"x": ["n", 8]}, [x, y])
    feed = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    result = converted(model, feed)
    assert [v.name for v in result.model.graph.output] == [x, y]
    for real, found in zip(run(model, feed), as_on_gpu(result.model, feed), strict=True):
        assert found.dtype == np.float32
        assert snr_db(real, found) > 60


def test_nodes_can_be_kept_by_name() -> None:
    feed = {"x": images(8)}
    result = converted(residual(), feed, keep="n_conv_3,n_gemm_14")
    assert kept(result) == {"n_conv_3": "kept by name", "n_gemm_14": "kept by name"}


def test_light_work_between_float32_layers_is_not_worth_its_casts() -> None:
    result = converted(residual(), {"x": images(8)}, keep=("n_conv_3", "n_conv_5"))
    assert kept(result)["n_relu_4"] == "Casts around it would cost more than fp16 saves"
    assert any(note.startswith("1 more nodes stay in fp32") for note in result.notes)


def test_operators_without_a_kernel_and_those_that_decide() -> None:
    net = Net()
    x = net.op("MatMul", "x", net.constant(net.weights(8, 8)))
    steps = net.op("Floor", x)
    grown = net.op(
        "CumSum",
        net.op("Det", net.op("Reshape", steps, net.constant(np.array([-1, 2, 2])))),
        net.constant(np.array(0)),
    )
    y = net.op(
        "MatMul",
        net.op("Reshape", grown, net.constant(np.array([-1, 2]))),
        net.constant(net.weights(2, 2)),
    )
    model = net.model({"x": ["n", 8]}, [y])
    feed = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    reasons = kept(converted(model, feed))
    assert reasons["n_floor_1"] == "it compares or truncates values that fp16 may make equal"
    assert reasons["n_det_3"] == "it has no known fp16 kernel in CUDA and TensorRT"


def test_what_is_measured_of_a_tensor_is_what_numpy_finds() -> None:
    """Inside the run and outside of it, with values that underflow and such that do not."""
    values = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    values[:, 0] *= np.float32(1e-5)
    for scale in (1e-6, 1e-3, 1.0):
        seen = measure_array(values * np.float32(scale))
        stored = (values * np.float32(scale)).astype(np.float16).astype(np.float64)
        real = (values * np.float32(scale)).astype(np.float64)
        assert seen.snr_db == pytest.approx(snr_db(real, stored), abs=1e-6)
        net = Net()
        x = net.op("Mul", "x", net.constant(np.float32(1)))
        model = net.model({"x": ["n", 8]}, [net.op("MatMul", x, net.constant(net.weights(8, 8)))])
        from edgepack.passes.half.measurements import measure

        found = measure(
            model,
            [x],
            [x],
            {},
            Arrays(x=values * np.float32(scale)),
            4,
            lambda n: None,
            lambda n: None,
        ).tensors[x]
        assert found.snr_db == pytest.approx(seen.snr_db, abs=0.01)
        assert found.peak == pytest.approx(seen.peak, rel=1e-6)
        assert found.smallest == pytest.approx(seen.smallest, rel=1e-6)


def quantized(opset: int, scheme: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network with integer layers and a float attention behind them, before and after int8."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    x = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Reshape", x, net.constant(np.array([0, 8, -1])))
    scores = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))
    scaled = net.op("Mul", scores, net.constant(np.float32(1 / 16)))
    mixed = net.op("MatMul", net.op("Softmax", scaled), x)
    model = net.model(
        {"x": ["n", 3, 16, 16]}, [net.gemm(net.op("Flatten", mixed), 2048, 10)], opset
    )
    result = quantize(
        model, Arrays(x=images(32)), QuantizeOptions(scheme=scheme, range="full"), Steps()
    )
    return model, result.model


def neighbours(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """Which operator reads which, by type, of what Q and DQ touch."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    pairs = {(made[n], node.op_type) for node in model.graph.node for n in node.input if n in made}
    return {pair for pair in pairs if any("quantize" in kind.lower() for kind in pair)}


def test_before_opset_19_the_quantized_part_stays_as_it_is() -> None:
    model, int8 = quantized(18, "fbgemm")
    feed = {"x": images(32)}
    result = converted(int8, feed)
    found = types(result.model)
    for node in result.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert found[node.input[1]] == FLOAT
        if node.op_type == "Softmax":
            assert found[node.output[0]] == HALF
    inside = {(a, b) for a, b in neighbours(int8) if "Quantize" in a and b == "Conv"}
    assert inside <= neighbours(result.model)
    assert result.details["nodes_quantized"] > 0
    assert any("quantized nodes are unchanged" in note for note in result.notes)
    assert snr_db(run(int8, feed)[0], as_on_gpu(result.model, feed)[0]) > 40
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 20


@pytest.mark.parametrize("opset", [19, 21])
def test_from_opset_19_on_scales_are_fp16_and_no_cast_parts_a_pattern(opset: int) -> None:
    model, int8 = quantized(opset, "tensorrt")
    feed = {"x": images(32)}
    result = converted(int8, feed)
    assert kept(result) == {}
    found = types(result.model)
    for node in result.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert found[node.input[1]] == HALF
    # Only the input is cast before its Q; nothing else comes between.
    assert neighbours(result.model) - neighbours(int8) <= {("Cast", "QuantizeLinear")}
    assert snr_db(run(int8, feed)[0], as_on_gpu(result.model, feed)[0]) > 35
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 20


def test_a_scale_that_fp16_does_not_hold_keeps_its_whole_pattern() -> None:
    _, int8 = quantized(21, "fbgemm")
    result = converted(int8, {"x": images(32)})
    reasons = kept(result)
    assert any("is a scale of" in reason for reason in reasons.values())
    assert "another node of its Q/DQ pattern stays float32" in reasons.values()
    made = {name: node for node in result.model.graph.node for name in node.output}
    for node in result.model.graph.node:
        if node.op_type == "Conv":
            assert {made[n].op_type for n in node.input} == {"DequantizeLinear"}


@pytest.mark.parametrize("name", NETS)
def test_a_strongly_typed_tensorrt_takes_the_types_as_they_are(name: str) -> None:
    """A real parser and builder that casts nothing by itself: every type must fit its neighbour."""
    if not tensorrt_rtx.installed():
        pytest.skip(f"TensorRT-RTX is not installed: {tensorrt_rtx.EXTRA}")
    make, samples = NETS[name]
    model = converted(make(), {"x": samples[:16]}).model
    shape = samples.shape[1:]
    profiles = {"x": ((1, *shape), (1, *shape), (8, *shape))}
    found = tensorrt_rtx.check(model.SerializeToString(), profiles, "8.9")
    assert found.engine_bytes > 0


def test_a_fill_of_what_is_filled_where_nothing_is_said() -> None:
    net = Net()
    x = net.conv("x", 3, 8)
    x = net.op("Concat", x, net.op("ConstantOfShape", net.op("Shape", x)), axis=1)
    model, feed = net.model({"x": ["n", 3, "h", "w"]}, [net.conv(x, 16, 4)]), {"x": images(8)}
    result = converted(model, feed)
    assert kept(result) == {}
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_what_is_fp16_already_stays_so() -> None:
    net = Net()
    x = net.op("Cast", net.conv("x", 3, 8), to=HALF)
    x = net.op("Relu", net.op("Mul", x, net.constant(np.float16(0.5))))
    x = net.op("Conv", x, net.constant(net.weights(4, 8, 3, 3).astype(np.float16)))
    model = net.model({"x": ["n", 3, 8, 8]}, [net.conv(net.op("Cast", x, to=FLOAT), 4, 4)])
    feed = {"x": images(8, size=8)}
    result = converted(model, feed)
    assert kept(result) == {}
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 55


def test_no_two_nodes_have_one_name() -> None:
    model, feed = residual(), {"x": images(8)}
    model.graph.node[0].name = "x_to_half"
    result = converted(model, feed)
    names = [node.name for node in result.model.graph.node]
    assert "x_to_half" in names
    assert len(set(names)) == len(names)
    assert snr_db(run(model, feed)[0], as_on_gpu(result.model, feed)[0]) > 60
