"""tensorrt-int8 on a real GPU with TensorRT: finished there, verified, timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import on_gpu
from edgepack.runtime.bundle.engines import TENSORRT
from support.half_nets import NETS


@pytest.fixture(autouse=True)
def tensorrt() -> None:
    """Skip where there is no TensorRT to build engines with."""
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed beside this Python")


@pytest.mark.parametrize("name", ["residual", "gated"])
def test_an_engine_is_built_here_and_computes_the_same(name: str, tmp_path: Path) -> None:
    case = on_gpu.of_arrays(name, NETS[name][0](), NETS[name][1], tmp_path)
    bundle = on_gpu.built(case, "tensorrt-int8", tmp_path)
    on_gpu.run([sys.executable, str(bundle), "finish"])
    found = on_gpu.verified(bundle)
    assert found["variant"]["engine"] == TENSORRT
    assert found["variant"]["sealed"]


@pytest.mark.parametrize("case", on_gpu.examples(), ids=lambda case: case.name)
def test_the_examples_in_tensorrt(case: on_gpu.Case, tmp_path: Path) -> None:
    bundle = on_gpu.built(case, "tensorrt-int8", tmp_path)
    on_gpu.run([sys.executable, str(bundle), "finish"])
    assert on_gpu.verified(bundle)["variant"]["engine"] == TENSORRT
