"""cuda-fp16 on a real GPU: the same answers as the build host's CPU, and their time.

EDGEPACK_WRITE_RESULTS=1 writes what was measured of the examples to benchmarks/results/gpu-*.json.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import on_gpu
from edgepack.runtime.bundle.engines import CUDA
from support import ROOT
from support.half_nets import NETS

# The profile's own bound on a GPU against the build host's CPU.
FIDELITY_DB = 34.0


@pytest.mark.parametrize("name", NETS)
def test_the_nets_of_the_tests_compute_the_same_on_the_gpu(name: str, tmp_path: Path) -> None:
    case = on_gpu.of_arrays(name, NETS[name][0](), NETS[name][1], tmp_path)
    found = on_gpu.verified(on_gpu.built(case, "cuda-fp16", tmp_path))
    assert found["variant"]["engine"] == CUDA
    assert not found["variant"]["fallback"]
    for snr in found["fidelity_snr_db"].values():
        assert snr is None or snr >= FIDELITY_DB


@pytest.mark.parametrize("case", on_gpu.examples(), ids=lambda case: case.name)
def test_the_examples_on_the_gpu_beside_pytorch_and_float32(
    case: on_gpu.Case, results: list[dict[str, object]]
) -> None:
    row = on_gpu.measured(case, "cuda-fp16", "cuda")
    print(on_gpu.table(row))
    assert row["variant"]["engine"] == CUDA
    for snr in row["fidelity_snr_db"].values():
        assert snr is None or snr >= FIDELITY_DB
    results.append(row)


@pytest.fixture(scope="module")
def results() -> list[dict[str, object]]:
    """What was measured; written at the end where that was asked for."""
    rows: list[dict[str, object]] = []
    yield rows
    if rows and os.environ.get("EDGEPACK_WRITE_RESULTS"):
        print(on_gpu.written(rows, ROOT / "benchmarks" / "results"))
