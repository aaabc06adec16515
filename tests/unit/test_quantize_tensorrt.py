"""The scheme of TensorRT: what is written, what it computes, and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.ao.quantization import MinMaxObserver
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from edgepack.ledger import PassResult
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.calibration.activations import calibrate_histogram, cover_range
from edgepack.passes.quantize.calibration.calibrators import Histogram, fold_magnitudes
from edgepack.passes.quantize.calibration.observe import Range
from edgepack.passes.quantize.scheme import Affine, fit_row_scales, fit_symmetric, round_up_to_half
from edgepack.runtime.session.onnx_session import LITERAL, OnnxSession
from support.quantize_nets import (
    Arrays,
    Net,
    Steps,
    bright,
    gated,
    images,
    residual,
    run,
    snr_db,
    stress,
)

RANDOM = np.random.default_rng(11)
OPTIONS = {"scheme": "tensorrt", "range": "full"}
NETS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int], np.ndarray]]] = {
    "residual": (residual, images),
    "gated": (gated, images),
    "stress": (stress, bright),
}


def quantized(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], **options: Any
) -> PassResult[Any]:
    chosen = QuantizeOptions(**{**OPTIONS, **options})
    result = quantize(model, Arrays(**inputs), chosen, Steps())
    onnx.checker.check_model(result.model, full_check=True)
    return result


def literal(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As the loader runs it where it stands in for TensorRT."""
    return list(OnnxSession(model.SerializeToString(), literal=True).run(inputs).values())


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


# What is written


@pytest.mark.parametrize("name", NETS)
def test_it_is_written_as_tensorrts_parser_wants_it(name: str) -> None:
    make, samples = NETS[name]
    result = quantized(make(), {"x": samples(24)})
    values = constants(result.model)
    layers = 0
    for node in result.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            # Nothing is lost when a scale, or a bias, becomes a float16.
            scale = values[node.input[1]]
            assert (scale > 0).all()
            assert (scale.astype(np.float16) == scale).all()
        elif node.op_type in ("Conv", "Gemm"):
            layers += 1
            bias = values[node.input[2]]
            assert bias.dtype == np.float32
            assert (bias.astype(np.float16) == bias).all()
    assert layers == result.details["layers_quantized"]
    stored = {t.data_type for t in result.model.graph.initializer}
    assert TensorProto.INT32 not in stored
    assert TensorProto.UINT8 not in stored
    assert not result.details["integer_only"]


def test_every_tensor_has_one_pair_and_every_output_is_as_it_was_made() -> None:
    model = residual()
    result = quantized(model, {"x": images(24)})
    kinds = Counter(node.op_type for node in result.model.graph.node)
    # The input, what five convolutions and the mean read: the skips share those.
    assert kinds["QuantizeLinear"] == 7
    assert kinds["Relu"] == sum(node.op_type == "Relu" for node in model.graph.node)
    (made,) = (n for n in result.model.graph.node if n.output[0] == model.graph.output[0].name)
    assert made.op_type == "Gemm"


def test_a_tensor_that_is_also_an_output_is_not_rounded_there() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    model = net.model({"x": ["n", 3, 16, 16]}, [x, net.conv(x, 8, 4)])
    result = quantized(model, {"x": images(24)})
    seen = literal(result.model, {"x": images(2)})[0]
    steps = np.unique(np.abs(seen))
    # Many more values than the 128 that a rounded one could have.
    assert len(steps) > 1000
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]


def test_a_matmuls_correction_goes_into_the_add_behind_it() -> None:
    net = Net()
    product = net.op("MatMul", "x", net.constant(net.weights(16, 12)))
    bias = net.weights(12, 4)[:, 0]
    model = net.model({"x": ["n", 5, 16]}, [net.op("Add", product, net.constant(bias, "bias"))])
    samples = RANDOM.standard_normal((64, 5, 16)).astype(np.float32) + 0.3
    result = quantized(model, {"x": samples}, rounding="nearest")
    (add,) = (n for n in result.model.graph.node if n.op_type == "Add")
    corrected = constants(result.model)[add.input[1]]
    assert 0 < np.abs(corrected - bias).max() < 0.05


def test_the_pass_says_what_stayed_float() -> None:
    net, hidden = Net(), 8
    x = net.op("Reshape", net.conv("x", 3, 4), net.constant(np.array([64, 1, 16])))
    gates = [net.constant(net.weights(1, 4 * hidden, size)) for size in (16, hidden)]
    y = net.op("LSTM", x, *gates, hidden_size=hidden, outputs=3)
    y = net.op("Reshape", y, net.constant(np.array([64, hidden])))
    model = net.model({"x": [1, 3, 16, 16]}, [net.gemm(y, hidden, 3)])
    result = quantized(model, {"x": images(12)}, batch_size=1)
    (left,) = result.details["layers_float"]
    assert left["reason"] == "recurrent: TensorRT has no integer LSTM"


def test_an_activation_that_is_always_zero_is_reported() -> None:
    net = Net()
    bias = net.constant(np.full(4, -1e3, np.float32))
    x = net.op("Conv", "x", net.constant(net.weights(4, 3, 3, 3)), bias, pads=[1] * 4)
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv(net.op("Relu", x), 4, 2)])
    result = quantized(model, {"x": images(12)})
    assert any("whole numbers from -128 to 127" in note for note in result.notes)


# What it computes


def test_a_layer_computes_what_an_integer_kernel_does() -> None:
    """relu(int32 sums * scales + bias), in integers of numpy's, against the pairs in float."""
    net = Net(3)
    x = net.op("Relu", net.conv("x", 3, 8))
    model = net.model({"x": ["n", 3, 16, 16]}, [x])
    inputs = images(4)
    result = quantized(model, {"x": images(24)})
    values = constants(result.model)
    quantize_, conv = (
        next(n for n in result.model.graph.node if n.op_type == kind)
        for kind in ("QuantizeLinear", "Conv")
    )
    weigh = next(n for n in result.model.graph.node if n.output[0] == conv.input[1])
    scale, scales = values[quantize_.input[1]], values[weigh.input[1]]
    stored = np.clip(np.rint(inputs / scale), -128, 127)
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(stored).double(),
        torch.tensor(values[weigh.input[0]], dtype=torch.float64),
        padding=1,
    ).numpy()
    assert np.abs(sums).max() < 2**31
    bias = values[conv.input[2]]
    wanted = np.maximum(sums * (scale * scales)[:, None, None] + bias[:, None, None], 0)
    found = literal(result.model, {"x": inputs})[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_computes_the_pairs_as_the_standard_says(name: str) -> None:
    make, samples = NETS[name]
    inputs = {"x": samples(16)}
    model = quantized(make(), {"x": samples(32)}).model
    # Nothing in these networks changed its meaning; the evaluator knows Q/DQ from 19 on.
    model.opset_import[0].version = 19
    standard = ReferenceEvaluator(model).run(None, inputs)[0]
    # Sums in another order move a value over the edge between two integers now and then.
    with np.errstate(divide="ignore"):
        assert snr_db(standard, literal(model, inputs)[0]) > 40


def test_pairs_in_float_do_not_depend_on_integer_kernels(tmp_path: Path) -> None:
    """A linear bottleneck becomes an integer kernel on the CPU, unless it is told not to."""
    net = Net(5)
    x = net.conv(net.conv("x", 3, 8), 8, 8, 1)
    model = quantized(
        net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 8, 4)]), {"x": images(24)}
    ).model
    kinds = {}
    for level in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(LITERAL, level)
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / level)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {"x": images(1)})
        trace = Path(session.end_profiling())
        kinds[level] = {
            event["args"].get("op_name")
            for event in json.loads(trace.read_text())
            if "args" in event
        }
    assert "QLinearConv" in kinds["0"]
    assert not {"QLinearConv", "ConvInteger", "QGemm"} & kinds["1"]


# What it costs


@pytest.mark.parametrize(("name", "bound"), [("residual", 36), ("gated", 38), ("stress", 50)])
def test_little_of_the_signal_is_lost(name: str, bound: float) -> None:
    """Measured 42, 45 and 58 dB; u8 activations give 48, 43 and 68."""
    make, samples = NETS[name]
    model, inputs = make(), {"x": samples(64)}
    result = quantized(model, inputs)
    assert snr_db(run(model, inputs)[0], literal(result.model, inputs)[0]) > bound


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_every_calibrator_and_rounding_works(calibrator: str, rounding: str) -> None:
    model, inputs = residual(), {"x": images(32)}
    result = quantized(model, inputs, calibrator=calibrator, rounding=rounding)
    assert snr_db(run(model, inputs)[0], literal(result.model, inputs)[0]) > 20


def test_bias_correction_goes_into_float_biases() -> None:
    model, inputs = residual(), {"x": images(64)}
    drift = []
    for correct in (False, True):
        result = quantized(model, inputs, bias_correction=correct, rounding="nearest")
        error = literal(result.model, inputs)[0] - run(model, inputs)[0]
        drift.append(np.square(error.mean(axis=0)).sum())
    assert drift[1] < 0.5 * drift[0]


# Scales and ranges


@pytest.mark.parametrize("reach", [3e-3, 0.7, 4.0, 900.0])
def test_scales_are_pytorchs_symmetric_ones_rounded_up_to_a_float16(reach: float) -> None:
    values = (RANDOM.standard_normal((8, 500)) * reach).astype(np.float32)
    observer = MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-127, quant_max=127
    )
    observer(torch.from_numpy(values))
    theirs = observer.calculate_qparams()[0].item()
    ours = cover_range(Range(float(values.min()), float(values.max())), "tensorrt")
    assert theirs <= ours.scale <= theirs * (1 + 2**-10)
    assert ours.zero_point == 0
    channels = PerChannelMinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    channels(torch.from_numpy(values))
    wanted = channels.calculate_qparams()[0].numpy()
    assert (fit_row_scales(values, 127.0).astype(np.float32) == wanted).all()


def test_a_float16_above_is_the_next_one_and_never_zero() -> None:
    values = np.array([0.0, 1e-9, 1e-5, 0.1, 1.0, 1 + 2**-11, 65504.0, 70000.0, 1e9])
    above = round_up_to_half(values)
    assert above.tolist()[-2:] == [70000.0, 1e9]
    halves = above[:-2].astype(np.float16)
    assert (halves.astype(np.float64) == above[:-2]).all()
    assert (above >= values).all()
    assert (above > 0).all()
    below = np.nextafter(halves, np.float16(0)).astype(np.float64)
    assert (below[2:] < values[2:-2]).all()


def test_s8_stores_what_it_says() -> None:
    found = fit_symmetric(2.0)
    assert (found.low, found.high) == (-128 * found.scale, 127 * found.scale)
    assert found.stored_zero.dtype == np.int8
    values = np.float32([-5, -1, -0.0, 0.3, 1.99, 5])
    faked = found.fake(values)
    assert faked[[0, -1]].tolist() == pytest.approx([found.low, found.high])
    assert np.abs(faked - values)[1:-1].max() <= found.scale / 2 + 1e-6
    assert fit_symmetric(0.0) == Affine(1.0, 0, -128)


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram(float(values.min()), float(values.max()))
    histogram.add(values)
    return histogram


@pytest.mark.parametrize(
    "values",
    [
        RANDOM.standard_normal(20_000) * 2 + 1,
        np.maximum(RANDOM.standard_normal(20_000), 0),
        -np.abs(RANDOM.laplace(size=20_000)),
        RANDOM.uniform(2, 5, 20_000),
    ],
    ids=["shifted", "relu", "negative", "far from zero"],
)
def test_folding_a_histogram_counts_magnitudes(values: np.ndarray) -> None:
    found = fold_magnitudes(counted(values))
    magnitudes = np.abs(values)
    assert found.low == 0
    assert found.high == pytest.approx(magnitudes.max())
    assert found.counts.sum() + found.zeros == pytest.approx(len(values))
    for share in (0.1, 0.5, 0.9):
        limit = np.quantile(magnitudes[magnitudes > 0], share)
        below = np.interp(limit, found.edges, np.concatenate([[0], np.cumsum(found.counts)]))
        assert below / found.counts.sum() == pytest.approx(share, abs=0.02)


def test_symmetric_calibrators_weigh_both_sides_by_127_steps() -> None:
    outliers = np.append(RANDOM.standard_normal(50_000), [60.0, -45.0])
    counts = counted(outliers)

    def reach(calibrator: str, **options: Any) -> float:
        chosen = QuantizeOptions(**OPTIONS, calibrator=calibrator, **options)
        return 127 * calibrate_histogram(counts, chosen).scale

    assert reach("minmax") == pytest.approx(60, rel=2e-3)
    # One value in a hundred lies beyond 2.576 standard deviations, on one side or the other.
    assert reach("percentile", percentile=99.0) == pytest.approx(2.576, rel=0.03)
    assert 2 < reach("entropy") < 20

    def error(limit: float) -> float:
        found = fit_symmetric(limit)
        return float(np.square(found.fake(outliers) - outliers).mean())

    best = reach("mse")
    assert error(best) <= min(error(best * 0.7), error(best * 1.5), error(60.0))


def test_a_constant_zero_folds_to_nothing() -> None:
    counts = Histogram(0.0, 0.0)
    counts.add(np.zeros(10))
    assert calibrate_histogram(counts, QuantizeOptions(**OPTIONS)) == Affine(1.0, 0, -128)
