"""What cannot be quantized, stated or built for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import passes
from edgepack.errors import ChainError, EdgepackError, HostError, SpecError
from edgepack.host import check_host
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.request import Flags, Request, resolve
from edgepack.spec import manifest, target
from support.quantize_nets import Arrays, Net, Steps, images

JETSON = target.load("jetson-trt")
OLD_HOST = {"arch": "x86_64", "cpu": "of 2015", "isa": ["avx2", "fma"]}


@pytest.mark.parametrize("reach", ["pair-safe", "reduced"])
def test_the_scheme_has_no_other_range(reach: str) -> None:
    with pytest.raises(ChainError) as caught:
        QuantizeOptions(scheme="tensorrt", range=reach)
    assert caught.value.code == "quantize-option"
    assert "range=full" in caught.value.hint
    with pytest.raises(EdgepackError) as caught:
        resolve(Path("m"), JETSON, manifest.Manifest(), Flags(chain=f"quantize:range={reach}"))
    assert caught.value.code == "quantize-option"


def test_a_network_without_a_layer_for_integers_tells_why_of_each() -> None:
    net = Net()
    wide = net.op("ConvTranspose", "x", net.constant(net.weights(3, 3, 2, 2)), strides=[2, 2])
    model = net.model({"x": [2, 3, 16, 16]}, [net.op("MatMul", wide, wide)])
    with pytest.raises(ChainError) as caught:
        quantize(
            model,
            Arrays(x=images(4)),
            QuantizeOptions(scheme="tensorrt", range="full", batch_size=2),
            Steps(),
        )
    assert caught.value.code == "quantize-nothing-to-do"
    assert "edgepack quantizes no transposed convolution" in caught.value.why
    assert "both operands are activations" in caught.value.why


def test_samples_that_hold_nan_are_refused_as_for_every_scheme() -> None:
    net = Net()
    model = net.model({"x": ["n", 3, 16, 16]}, [net.conv("x", 3, 4)])
    spoilt = images(4)
    spoilt[2, 0, 0, 0] = np.nan
    options = QuantizeOptions(scheme="tensorrt", range="full")
    with pytest.raises(ChainError) as caught:
        quantize(model, Arrays(x=spoilt), options, Steps())
    assert caught.value.code == "quantize-calibration-nonfinite"


def steps(profile: target.Target) -> Request:
    found = (passes.Step("quantize", {**profile.read_table("quantize"), "range": "full"}),)
    return Request(Path("m"), profile, Path("o"), "m", chain=found)


def test_a_host_whose_integers_saturate_is_no_hindrance_for_a_gpu() -> None:
    """What is for a GPU runs on the build host in float; what is for an ARM core does not."""
    check_host(steps(JETSON), OLD_HOST)
    with pytest.raises(HostError) as caught:
        check_host(steps(target.load("arm-qnnpack")), OLD_HOST)
    assert caught.value.code == "host-saturates"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('extends = "jetson-trt"\n[engine]\ndla_core = 2\n', "engine.dla_core"),
        ('extends = "jetson-trt"\n[engine]\nworkspace_mb = 1\n', "engine.workspace_mb"),
        ('extends = "jetson-trt"\n[engine]\nworkspace = 64\n', "did you mean 'workspace_mb'?"),
        ('extends = "jetson-trt"\n[engine]\nversion = "10.x"\n', "engine.version"),
        ('extends = "jetson-trt"\n[device]\ncompute_capability = "sm_87"\n', "compute_capability"),
        ('extends = "jetson-trt"\n[quantize]\nscheme = "tensor-rt"\n', "quantize.scheme"),
    ],
)
def test_a_profile_of_ones_own_is_checked(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        target.load(str(path))
    assert caught.value.code == "target-invalid"
    assert told in caught.value.why


def test_a_profile_of_ones_own_may_ask_for_an_accelerator(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "jetson-trt"\nname = "orin-nx"\n[engine]\ndla_core = 1\n')
    found: Any = target.load(str(path))
    assert (found.name, found.dla_core, found.engine) == ("orin-nx", 1, "tensorrt")
