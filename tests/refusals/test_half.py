"""What `half` refuses: options, samples, models and chains that it cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.half import HalfOptions, half
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.build_cases import Home, ask
from support.half_nets import loud
from support.quantize_nets import Arrays, Net, Steps, images, residual


def code(error: pytest.ExceptionInfo[ChainError]) -> str:
    assert error.value.what
    assert error.value.why
    assert error.value.hint
    return error.value.code


@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0},
        {"margin": 0.5},
        {"margin": 1e9},
        {"margin": float("nan")},
        {"margin": "wide"},
        {"margin": True},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"keep": 3},
        {"keep": ["n_conv_0", 1]},
    ],
    ids=str,
)
def test_an_option_that_it_cannot_take(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as error:
        HalfOptions(**options)
    assert code(error) == "half-option"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("half:margins=4", "chain-option"),
        ("half:margin", "chain-option"),
        ("half:margin=2:margin=4", "chain-option"),
        ("half:margin=none", "half-option"),
        ("half,half", "chain-conflict"),
        ("quantize:mode=dynamic,half", "chain-conflict"),
        ("quantize:mode=weights:bits=4,half", "chain-conflict"),
        ("half,quantize", "chain-order"),
        ("quantize,half,quantize", "chain-order"),
        ("halve", "chain-unknown-pass"),
    ],
)
def test_a_chain_that_cannot_be(home: Home, tmp_path: Path, written: str, expected: str) -> None:
    output = tmp_path / "x.edgepack"
    answer = ask(*home.build("tiny.onnx", "--chain", written, "--output", str(output)))
    assert (answer.status, answer.code) == (2, expected)
    # Before anything ran.
    assert "source" not in answer.stderr.split("error")[0]
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_gets_a_suggestion() -> None:
    with pytest.raises(ChainError) as error:
        passes.check_chain(passes.parse_chain("half:margn=3"))
    assert "did you mean 'margin'" in str(error.value)


def test_no_samples_were_given() -> None:
    with pytest.raises(ChainError) as error:
        half(residual(), None, HalfOptions(), Steps())
    assert code(error) == "calibration-missing"


def test_a_build_without_samples(home: Home, tmp_path: Path) -> None:
    answer = ask(
        *home.build("tiny.onnx", "--chain", "half", "--output", str(tmp_path / "x"), calibration="")
    )
    assert (answer.status, answer.code) == (2, "samples-missing")


def test_samples_that_are_none() -> None:
    with pytest.raises(ChainError) as error:
        half(residual(), Arrays(x=images(0)), HalfOptions(), Steps())
    assert code(error) == "half-calibration-empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_makes_the_model_give_nan(value: float) -> None:
    samples = images(12)
    samples[6, 0, 3, 3] = value
    with pytest.raises(ChainError) as error:
        half(residual(), Arrays(x=samples), HalfOptions(), Steps())
    assert code(error) == "half-calibration-nonfinite"


def test_a_kept_node_that_is_not_there() -> None:
    with pytest.raises(ChainError) as error:
        half(residual(), Arrays(x=images(4)), HalfOptions(keep=("n_gem_14",)), Steps())
    assert code(error) == "half-keep-unknown"
    assert "did you mean 'n_gemm_14'" in str(error.value)


@pytest.mark.parametrize("opset", [12, 22])
def test_an_opset_that_it_does_not_know(opset: int) -> None:
    model = residual()
    model.opset_import[0].version = opset
    with pytest.raises(ChainError) as error:
        half(model, Arrays(x=images(4)), HalfOptions(), Steps())
    assert code(error) == "half-opset"


def test_a_model_that_overflows_throughout() -> None:
    with pytest.raises(ChainError) as error:
        half(loud(1e7), Arrays(x=images(4) * 1e6), HalfOptions(), Steps())
    assert code(error) == "half-nothing-to-do"
    assert "reaches" in error.value.why


def test_a_model_without_arithmetic() -> None:
    net = Net()
    model = net.model({"x": ["n", 3]}, [net.op("Relu", "x")])
    with pytest.raises(ChainError) as error:
        half(model, Arrays(x=np.ones((4, 3), np.float32)), HalfOptions(), Steps())
    assert code(error) == "half-nothing-to-do"


def test_a_model_that_is_int8_throughout_before_opset_19() -> None:
    samples = Arrays(x=images(16))
    int8 = quantize(residual(), samples, QuantizeOptions(), Steps()).model
    with pytest.raises(ChainError) as error:
        half(int8, samples, HalfOptions(), Steps())
    assert code(error) == "half-nothing-to-do"
    assert "already quantized" in error.value.why
