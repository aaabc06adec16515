"""The GPU is looked for in a process of its own, whatever that process does.

There is no GPU here. The driver is a stand-in (gpu_standin/cuda.c) that can crash, hang or fail;
that the probe outlives it is what is proved.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack.runtime.device import gpu
from support import ROOT
from support.gpu_standin import GPU, StandIn

PROBE = """
import json, sys
from edgepack.runtime.device import gpu
print(json.dumps(gpu.probe({tensorrt}, timeout={timeout})))
"""


def probe(
    standin: StandIn, tensorrt: bool = True, timeout: float = 30, **variables: str
) -> dict[str, Any]:
    environment = standin.environment(**variables)
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(tensorrt=tensorrt, timeout=timeout)],
        env={key: value for key, value in environment.items() if value},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_gpu_and_tensorrt(gpu_standin: StandIn) -> None:
    found = probe(gpu_standin, STANDIN_CAPABILITY="10.0", STANDIN_SMS="148")
    assert found == {
        "gpu": GPU,
        "gpu_why": "",
        "compute_capability": "10.0",
        "multiprocessors": 148,
        "gpu_memory_bytes": 8 << 30,
        "cuda_driver": "12.6",
        "tensorrt": "10.3.0",
        "tensorrt_why": "",
        "l4t": None,
        "board": None,
    }


def test_tensorrt_is_not_imported_where_nobody_asks(gpu_standin: StandIn) -> None:
    found = probe(gpu_standin, tensorrt=False, STANDIN_RUNTIME="crash")
    assert (found["gpu"], found["tensorrt"]) == (GPU, None)


def test_without_a_driver() -> None:
    """For real, on a machine that has none."""
    found = gpu.probe(tensorrt=True)
    if found["gpu"] is not None:
        pytest.skip(f"this machine has a GPU: {found['gpu']}")
    assert found["gpu_why"]
    assert found["tensorrt"] is None


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"STANDIN_GPU": ""}, "cuInit: error 100 no CUDA-capable device is detected"),
        ({"STANDIN_FAIL": "cuInit"}, "cuInit: error 2 stand-in error"),
        ({"STANDIN_CRASH": "cuInit"}, "the probe ended with signal 11 (SIGSEGV)"),
        ({"STANDIN_CRASH": "cuDeviceGetCount"}, "the probe ended with signal 11 (SIGSEGV)"),
    ],
)
def test_no_usable_gpu(gpu_standin: StandIn, variables: dict[str, str], why: str) -> None:
    found = probe(gpu_standin, **variables)
    assert found["gpu"] is None
    assert found["gpu_why"] == why
    # Without a GPU TensorRT is not touched: its runtimes have been seen to crash there.
    assert found["tensorrt"] is None


def test_a_driver_that_hangs(gpu_standin: StandIn) -> None:
    found = probe(gpu_standin, timeout=2, STANDIN_HANG="cuInit")
    assert (found["gpu"], found["gpu_why"]) == (None, "the probe took longer than 2 s")


def test_a_tensorrt_that_crashes_does_not_hide_the_gpu(gpu_standin: StandIn) -> None:
    found = probe(gpu_standin, STANDIN_RUNTIME="crash")
    assert (found["gpu"], found["tensorrt"]) == (GPU, None)
    assert found["tensorrt_why"] == "the probe ended with signal 11 (SIGSEGV)"


def test_a_package_that_is_no_tensorrt(gpu_standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: not found')")
    found = probe(gpu_standin, PYTHONPATH=str(tmp_path))
    assert found["tensorrt_why"] == "OSError: libnvinfer.so.10: not found"


def test_what_the_libraries_print_is_no_fact(gpu_standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "import os\nos.write(1, b'loading \\xff {no JSON')\nraise ImportError('none')\n"
    )
    found = probe(gpu_standin, PYTHONPATH=str(tmp_path))
    assert (found["gpu"], found["tensorrt_why"]) == (GPU, "ImportError: none")


def test_real_tensorrt_without_a_gpu(gpu_standin: StandIn, tmp_path: Path) -> None:
    """TensorRT-RTX under TensorRT's name: with a driver that is none, its Runtime is probed."""
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX: pip install tensorrt-rtx-cu13")
    (tmp_path / "tensorrt.py").write_text(
        "import sys, tensorrt_rtx\nsys.modules['tensorrt'] = tensorrt_rtx\n"
    )
    found = probe(gpu_standin, PYTHONPATH=str(tmp_path))
    import tensorrt_rtx

    assert found["gpu"] == GPU
    # It starts, or it says or shows why it does not; this process goes on.
    assert found["tensorrt"] == tensorrt_rtx.__version__ or found["tensorrt_why"]


def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, board = tmp_path / "nv_tegra_release", tmp_path / "model"
    release.write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    )
    board.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setattr(gpu, "L4T_RELEASE", str(release))
    monkeypatch.setattr(gpu, "BOARD", str(board))
    found = gpu.probe(tensorrt=False)
    assert (found["l4t"], found["board"]) == ("36.4.3", "NVIDIA Jetson Orin Nano Developer Kit")


def test_a_board_that_is_no_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = tmp_path / "model"
    board.write_bytes(b"Raspberry Pi 5\0")
    monkeypatch.setattr(gpu, "L4T_RELEASE", str(tmp_path / "absent"))
    monkeypatch.setattr(gpu, "BOARD", str(board))
    found = gpu.probe(tensorrt=False)
    assert (found["l4t"], found["board"]) == (None, None)


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", os.fspath(ROOT / "no-such-python")):
        monkeypatch.setattr(sys, "executable", executable)
        found = gpu.probe(tensorrt=True)
        assert found["gpu"] is None
        assert found["gpu_why"]
