"""GPU memory and streams: the real libcudart without a GPU, and a stand-in that computes.

No GPU is here. The real library answers with an error, which must become a clear one. That sizes,
directions and the order of calls are right is proved against gpu_standin/cuda.c, a stand-in for
hardware that cannot be had, which checks every copy against what was allocated.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.runtime.errors import DeviceError
from edgepack.runtime.session import cuda, cuda_packages, libcudart
from edgepack.runtime.session.cuda_calls import Cuda
from edgepack.runtime.session.libcudart import Libcudart
from support.gpu_standin import GPU, StandIn


def real() -> str:
    """A real libcudart: an installed one, or that of pip's nvidia-cuda-runtime."""
    for path in libcudart.libraries():
        try:
            Libcudart(path)
        except DeviceError:
            return path
        except OSError:
            continue
    pytest.skip("no libcudart here, or a GPU: pip install nvidia-cuda-runtime-cu12")


def test_the_real_library_without_a_gpu() -> None:
    """Error 35 (no driver) or 100 (no device), in the library's own words."""
    with pytest.raises(DeviceError) as caught:
        Libcudart(real())
    assert caught.value.code == "cuda-failed"
    assert caught.value.why.startswith(
        ("cudaGetDeviceCount: error 35: CUDA driver version", "cudaGetDeviceCount: error 100: no")
    )


def test_nvidia_s_own_bindings_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    with pytest.raises(DeviceError) as caught:
        cuda_packages.CudaBindings()
    assert caught.value.code == "cuda-failed"
    assert "cudaGetDeviceCount: error " in caught.value.why


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU that is none; every call of the runtime gets a line."""
    monkeypatch.setenv("STANDIN_GPU", GPU)
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def device(gpu_standin: StandIn, log: Path) -> Cuda:
    return Libcudart(str(gpu_standin.library))


def test_there_and_back(device: Cuda, log: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = np.zeros_like(array)
    stream, address = device.stream_create(), device.malloc(array.nbytes)
    device.copy_in(address, array, stream)
    device.copy_out(found, address, stream)
    # Nothing is there before the stream is synchronised.
    assert not found.any()
    device.stream_synchronize(stream)
    np.testing.assert_array_equal(found, array)
    device.free(address)
    device.stream_destroy(stream)
    assert log.read_text().split("\n") == [
        "cudaGetDeviceCount 0 0",
        "cudaStreamCreate 0 0",
        "cudaMalloc 48 0",
        "cudaMemcpyAsync 48 1",
        "cudaMemcpyAsync 48 2",
        "cudaStreamSynchronize 0 0",
        "cudaFree 0 0",
        "cudaStreamDestroy 0 0",
        "",
    ]


def test_addresses_beyond_32_bits_survive(device: Cuda) -> None:
    """ctypes cuts a pointer to an int where nobody says what it is."""
    addresses = [device.malloc(1 << 20) for _ in range(4)]
    assert max(addresses) > 1 << 32
    for address in addresses:
        device.free(address)


MISUSES: list[tuple[Callable[[Cuda, int], Any], str]] = [
    (lambda device, stream: device.free(12345), "cudaFree: error 1: invalid argument"),
    (
        lambda device, stream: device.copy_in(device.malloc(4), np.zeros(2, np.float32), stream),
        "cudaMemcpyAsync: error 1: invalid argument",
    ),
    (
        lambda device, stream: device.copy_out(np.zeros(2, np.float32), 4096, stream),
        "cudaMemcpyAsync: error 1: invalid argument",
    ),
]


@pytest.mark.parametrize(("call", "why"), MISUSES)
def test_what_the_library_refuses(call: Callable[..., Any], why: str, device: Cuda) -> None:
    with pytest.raises(DeviceError) as caught:
        call(device, device.stream_create())
    assert (caught.value.code, caught.value.why) == ("cuda-failed", why)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("cudaMalloc", lambda device, stream: device.malloc(16)),
        ("cudaStreamCreate", lambda device, stream: device.stream_create()),
        ("cudaStreamSynchronize", lambda device, stream: device.stream_synchronize(stream)),
        ("cudaStreamDestroy", lambda device, stream: device.stream_destroy(stream)),
    ],
)
def test_every_failure_is_told(
    function: str, call: Callable[..., Any], device: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = device.stream_create()
    monkeypatch.setenv("STANDIN_FAIL", function)
    with pytest.raises(DeviceError) as caught:
        call(device, stream)
    assert caught.value.why == f"{function}: error 2: out of memory"


def test_the_first_that_works_is_taken(
    gpu_standin: StandIn, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is too old for the newest library may run an older one."""
    places = ["libcudart.so.0", str(gpu_standin.library)]
    monkeypatch.setattr(cuda, "libraries", lambda: places)
    assert cuda.open_cuda().name == str(gpu_standin.library)


def test_where_none_works_every_reason_is_told(
    gpu_standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STANDIN_GPU", raising=False)
    monkeypatch.setattr(cuda, "libraries", lambda: ["libcudart.so.0", str(gpu_standin.library)])
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DeviceError) as caught:
        cuda.open_cuda()
    assert caught.value.code == "cuda-missing"
    told = caught.value.why.splitlines()
    assert "libcudart.so.0" in told[0]
    assert told[1] == "cudaGetDeviceCount: error 100: no CUDA-capable device is detected"
    assert len(told) == 4


def test_a_library_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name without the functions."""
    monkeypatch.setattr(cuda, "libraries", lambda: ["libm.so.6"])
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DeviceError) as caught:
        cuda.open_cuda()
    assert "undefined symbol: cudaGetDeviceCount" in caught.value.why


def test_libraries_of_pip_s_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("cuda_runtime", "libcudart.so.12"), ("cu13", "libcudart.so.13")):
        place = tmp_path / "site [x]" / "nvidia" / folder / "lib"
        place.mkdir(parents=True)
        (place / name).touch()
    monkeypatch.setattr(sys, "path", ["", "relative", str(tmp_path / "site [x]")])
    found = [path for path in libcudart.libraries() if path.startswith(str(tmp_path))]
    assert [Path(path).name for path in found] == ["libcudart.so.13", "libcudart.so.12"]
    # First what the linker finds: that is what the device's owner installed.
    assert libcudart.libraries()[: len(libcudart.SONAMES)] == list(libcudart.SONAMES)


def bindings_over(device: Cuda) -> types.ModuleType:
    """`cuda.bindings.runtime` as far as it is used, over the stand-in: (status, value...)."""
    module = types.ModuleType("cuda.bindings.runtime")
    module.cudaMemcpyKind = types.SimpleNamespace(  # type: ignore[attr-defined]
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
    )
    library = device._library  # type: ignore[attr-defined]
    import ctypes

    def plain(name: str) -> Callable[..., tuple[int]]:
        return lambda *given: (getattr(library, name)(*given),)

    def giving(name: str, kind: Any) -> Callable[..., tuple[int, int]]:
        def call(*given: Any) -> tuple[int, int]:
            value = kind()
            return getattr(library, name)(ctypes.byref(value), *given), value.value or 0

        return call

    for name in ("cudaFree", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaStreamDestroy"):
        setattr(module, name, plain(name))
    for name, kind in (
        ("cudaMalloc", ctypes.c_void_p),
        ("cudaStreamCreate", ctypes.c_void_p),
        ("cudaGetDeviceCount", ctypes.c_int),
    ):
        setattr(module, name, giving(name, kind))
    module.cudaGetErrorString = lambda status: (  # type: ignore[attr-defined]
        0,
        library.cudaGetErrorString(status),
    )
    return module


def pycuda_over(device: Cuda) -> types.ModuleType:
    """`pycuda.driver` as far as it is used, over the stand-in: objects that are freed by method."""
    module = types.ModuleType("pycuda.driver")

    class Memory(int):
        def free(self) -> None:
            device.free(int(self))

    class Stream:
        def __init__(self) -> None:
            self.handle = device.stream_create()

        def synchronize(self) -> None:
            device.stream_synchronize(self.handle)

    def at_once(copy: Callable[[int], None]) -> None:
        stream = device.stream_create()
        copy(stream)
        device.stream_synchronize(stream)

    context = types.SimpleNamespace(push=lambda: None)
    gpu = types.SimpleNamespace(retain_primary_context=lambda: context)
    for name, value in {
        "init": lambda: None,
        "Device": lambda ordinal: gpu,
        "mem_alloc": lambda size: Memory(device.malloc(size)),
        "memcpy_htod": lambda to, array: at_once(lambda s: device.copy_in(to, array, s)),
        "memcpy_dtoh": lambda array, start: at_once(lambda s: device.copy_out(array, start, s)),
        "Stream": Stream,
    }.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("way", ["cuda.bindings", "pycuda"])
def test_the_packages_make_the_same_calls(
    way: str, device: Cuda, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their modules are stand-ins too: neither can be used without a GPU."""
    if way == "pycuda":
        monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
        monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda_over(device))
        sys.modules["pycuda"].driver = sys.modules["pycuda.driver"]  # type: ignore[attr-defined]
        other: Cuda = cuda_packages.PyCuda()
    else:
        bindings = types.ModuleType("cuda.bindings")
        bindings.runtime = bindings_over(device)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        other = cuda_packages.CudaBindings()
    assert other.name == way
    array = np.arange(5, dtype=np.int64)
    found = np.zeros_like(array)
    stream, address = other.stream_create(), other.malloc(array.nbytes)
    other.copy_in(address, array, stream)
    other.copy_out(found, address, stream)
    other.stream_synchronize(stream)
    np.testing.assert_array_equal(found, array)
    other.free(address)
    other.stream_destroy(stream)
    assert log.read_text().count("cudaMalloc 40 0") == log.read_text().count("cudaFree") == 1
    monkeypatch.setenv("STANDIN_FAIL", "cudaMalloc")
    with pytest.raises(DeviceError) as caught:
        other.malloc(8)
    assert caught.value.code == "cuda-failed"
    assert "out of memory" in caught.value.why
