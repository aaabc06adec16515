"""Every error of edgepack.chain.quantize, by a small case of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.chain.quantize import QuantizeOptions, quantize
from edgepack.errors import ChainError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from quantize_nets import Arrays, Net, Steps, images, residual


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
    assert "samples 4 to 7" in error.value.why


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
