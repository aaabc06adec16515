"""One file, the same bits: pair-safe weights on this CPU and on emulated ones without VNNI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import Arrays, Steps, bright, gated, images, residual, run, stress

pytestmark = pytest.mark.slow

CPUS = ("Haswell", "Skylake-Client")
QEMU = shutil.which("qemu-x86_64")
SCRIPT = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
found = session.run(None, {"x": numpy.load(sys.argv[2])})
numpy.savez(sys.argv[3], *found)
"""


def flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


needs_emulator = pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed")
needs_vnni = pytest.mark.skipif(
    "avx512_vnni" not in flags() and "avx_vnni" not in flags(),
    reason="this CPU has no VNNI: it saturates like the emulated one",
)


def emulated(
    model: onnx.ModelProto, x: np.ndarray, folder: Path, cpu: str = "Haswell"
) -> list[np.ndarray]:
    paths = [folder / name for name in ("model.onnx", "x.npy", "y.npz")]
    paths[0].write_bytes(model.SerializeToString())
    np.save(paths[1], x)
    site = Path(np.__file__).parents[1]
    subprocess.run(
        [QEMU or "", "-cpu", cpu, Path(sys.executable).resolve(), "-c", SCRIPT, *paths],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
        capture_output=True,
    )
    with np.load(paths[2]) as found:
        return [found[name] for name in found.files]


@needs_emulator
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_pair_safe_weights_give_the_same_bits_without_vnni(
    rounding: str, cpu: str, tmp_path: Path
) -> None:
    options = QuantizeOptions(rounding=rounding)
    model = quantize(stress(), Arrays(x=bright(24)), options, Steps()).model
    host, there = run(model, {"x": bright(8)}), emulated(model, bright(8), tmp_path, cpu)
    assert all((a == b).all() for a, b in zip(host, there, strict=True))
    # Not because everything is zero.
    assert np.std(host[0]) > 0


@needs_emulator
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("build", [residual, gated], ids=["residual", "gated"])
def test_integer_only_networks_give_the_same_bits_without_vnni(
    build: Callable[[], onnx.ModelProto], cpu: str, tmp_path: Path
) -> None:
    result = quantize(build(), Arrays(x=images(24)), QuantizeOptions(), Steps())
    assert result.details["integer_only"]
    model = result.model
    host, there = run(model, {"x": images(8)}), emulated(model, images(8), tmp_path, cpu)
    assert all((a == b).all() for a, b in zip(host, there, strict=True))


@needs_emulator
@needs_vnni
def test_at_full_range_the_same_network_saturates(tmp_path: Path) -> None:
    options = QuantizeOptions(range="full")
    model = quantize(stress(), Arrays(x=bright(24)), options, Steps()).model
    host, there = run(model, {"x": bright(8)})[0], emulated(model, bright(8), tmp_path)[0]
    assert np.abs(host - there).max() > 0.05 * np.abs(host).max()
