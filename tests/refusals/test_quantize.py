"""Every error of edgepack.passes.quantize, by a small case of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepack.errors import ChainError
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import Arrays, Net, Steps, images, residual


def code(error: pytest.ExceptionInfo[ChainError]) -> str:
    assert error.value.what
    assert error.value.why
    assert error.value.hint
    return error.value.code


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "qnnpac"},
        {"range": "pairsafe"},
        {"calibrator": "mmse"},
        {"rounding": "up"},
        {"percentile": 12.0},
        {"percentile": "most"},
        {"batch_size": 0},
        {"batch_size": True},
        {"bias_correction": "yes"},
        {"mode": "dynamik"},
        {"mode": 8},
        {"mode": "dynamic", "rounding": "up"},
        {"mode": "dynamic", "bits": 8},
        {"mode": "dynamic", "block": 32},
        {"bits": 4},
        {"block": 32},
        {"mode": "weights", "bits": 2},
        {"mode": "weights", "bits": "four"},
        {"mode": "weights", "bits": True},
        {"mode": "weights", "bits": 8, "block": 32},
        {"mode": "weights", "block": 32},
        {"mode": "weights", "bits": 4, "block": 48},
        {"mode": "weights", "bits": 4, "block": 8},
        {"mode": "weights", "bits": 4, "block": "32"},
        {"mode": "dynamic", "scheme": "tensorrt", "range": "full"},
        {"mode": "weights", "scheme": "tensorrt", "range": "full"},
    ],
    ids=str,
)
def test_an_option_that_nobody_knows(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as error:
        QuantizeOptions(**options)
    assert code(error) == "quantize-option"


def test_a_misspelt_option_gets_a_suggestion() -> None:
    with pytest.raises(ChainError) as error:
        QuantizeOptions(range="pairsafe")
    assert "pair-safe" in str(error.value)


def test_an_excluded_node_that_is_not_there() -> None:
    with pytest.raises(ChainError) as error:
        quantize(residual(), Arrays(x=images(4)), QuantizeOptions(exclude=("n_gem_14",)), Steps())
    assert code(error) == "quantize-exclude-unknown"
    assert "did you mean 'n_gemm_14'" in str(error.value)


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_what_the_other_modes_refuse(mode: str) -> None:
    """An excluded node that is not there, no layer at all, an opset that 1.19 cannot load."""
    options = QuantizeOptions(mode=mode, exclude=("n_gem_14",))
    with pytest.raises(ChainError) as error:
        quantize(residual(), None, options, Steps())
    assert code(error) == "quantize-exclude-unknown"
    assert "did you mean 'n_gemm_14'" in str(error.value)
    net = Net()
    model = net.model({"a": ["n", 3, 4], "b": ["n", 4, 3]}, [net.op("MatMul", "a", "b")])
    with pytest.raises(ChainError) as error:
        quantize(model, None, QuantizeOptions(mode=mode), Steps())
    assert code(error) == "quantize-nothing-to-do"
    model = residual()
    model.opset_import[0].version = 23
    with pytest.raises(ChainError) as error:
        quantize(model, None, QuantizeOptions(mode=mode), Steps())
    assert code(error) == "quantize-opset"


def test_everything_excluded_leaves_nothing_to_do() -> None:
    net = Net()
    model = net.model({"x": ["n", 8]}, [net.gemm("x", 8, 4)])
    options = QuantizeOptions(mode="dynamic", exclude=(model.graph.node[0].name,))
    with pytest.raises(ChainError) as error:
        quantize(model, None, options, Steps())
    assert code(error) == "quantize-nothing-to-do"
    assert "excluded by name" in error.value.why


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "dynamic", "rounding": "gptq"},
        {"mode": "weights", "bias_correction": True},
        {"mode": "weights", "bits": 4, "rounding": "gptq"},
    ],
    ids=str,
)
def test_options_that_need_samples_where_there_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as error:
        quantize(residual(), None, QuantizeOptions(**options), Steps())
    assert code(error) == "quantize-calibration-empty"


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_samples_that_make_the_model_overflow_or_are_none(mode: str) -> None:
    net = Net()
    model = net.model({"x": ["n", 8]}, [net.gemm("x", 8, 4)])
    options = QuantizeOptions(mode=mode, rounding="gptq")
    samples = np.ones((12, 8), np.float32)
    samples[6, 3] = np.nan
    for given, expected in (
        (samples, "quantize-calibration-nonfinite"),
        (samples[:0], "quantize-calibration-empty"),
    ):
        with pytest.raises(ChainError) as error:
            quantize(model, Arrays(x=given), options, Steps())
        assert code(error) == expected


def test_recurrent_layers_and_tables_that_cannot_become_integer() -> None:
    net, hidden = Net(), 4
    weights = [net.constant(net.weights(1, 4 * hidden, n)) for n in (8, hidden)]
    broken = net.weights(1, 4 * hidden, hidden)
    broken[0, 0, 0] = np.nan
    ids, fed = net.op("Cast", "ids", to=7), net.op("Concat", weights[0], "w", axis=1)
    made = [
        net.op("LSTM", "x", weights[0], net.constant(broken), hidden_size=hidden),
        net.op("LSTM", "x", fed, weights[1], hidden_size=hidden),
        net.op("Gather", net.constant(np.full((512, 8), np.inf, np.float32)), ids),
        net.op("MatMul", "x", net.constant(net.weights(8, 3))),
    ]
    inputs = {"x": ["t", "b", 8], "w": [1, 0, 8], "ids": ["n"]}
    model = net.model(inputs, made)
    for mode in ("dynamic", "weights"):
        result = quantize(model, None, QuantizeOptions(mode=mode), Steps())
        assert [each["reason"] for each in result.details["layers_float"]] == [
            "its weights hold NaN or infinity",
            "its weights are not constant",
        ]
        assert result.details["layers_quantized"] == 1


def test_nothing_to_quantize() -> None:
    net = Net()
    model = net.model({"a": ["n", 3, 4], "b": ["n", 4, 3]}, [net.op("MatMul", "a", "b")])
    ones = np.ones((4, 3, 4), np.float32)
    with pytest.raises(ChainError) as error:
        quantize(model, Arrays(a=ones, b=ones), QuantizeOptions(), Steps())
    assert code(error) == "quantize-nothing-to-do"
    assert "both operands are activations" in error.value.why


def test_no_linear_layer_at_all() -> None:
    net = Net()
    model = net.model({"x": ["n", 3]}, [net.op("Relu", "x")])
    with pytest.raises(ChainError) as error:
        quantize(model, Arrays(x=np.ones((4, 3), np.float32)), QuantizeOptions(), Steps())
    assert code(error) == "quantize-nothing-to-do"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_makes_the_model_overflow(value: float) -> None:
    samples = images(12)
    samples[6, 0, 3, 3] = value
    with pytest.raises(ChainError) as error:
        quantize(residual(), Arrays(x=samples), QuantizeOptions(), Steps())
    assert code(error) == "quantize-calibration-nonfinite"
    assert "on sample 6 of" in error.value.why


def test_no_samples() -> None:
    with pytest.raises(ChainError) as error:
        quantize(residual(), Arrays(x=images(0)), QuantizeOptions(), Steps())
    assert code(error) == "quantize-calibration-empty"


def test_an_opset_that_onnxruntime_1_19_cannot_load() -> None:
    model = residual()
    model.opset_import[0].version = 23
    with pytest.raises(ChainError) as error:
        quantize(model, Arrays(x=images(4)), QuantizeOptions(), Steps())
    assert code(error) == "quantize-opset"
