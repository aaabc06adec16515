"""GPU memory and streams through a Python package, for machines without a libcudart."""

from __future__ import annotations

from typing import Any, Callable, Dict

import numpy as np

from .cuda_calls import cuda_error


class CudaBindings:
    """NVIDIA's `cuda.bindings`. Raises ImportError, and DeviceError without a usable GPU."""

    name = "cuda.bindings"

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        if not self._call("cudaGetDeviceCount"):
            raise cuda_error("cudaGetDeviceCount", "there is no GPU")

    def _call(self, function: str, *arguments: object) -> int:
        # Every function returns its status and then its results, of which there is at most one.
        status, *values = getattr(self._runtime, function)(*arguments)
        if int(status):
            text = self._runtime.cudaGetErrorString(status)[1] or b""
            raise cuda_error(function, f"error {int(status)}: {text.decode('utf-8', 'replace')}")
        if not values:
            return 0
        return int(values[0])

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the GPU and return their address."""
        return self._call("cudaMalloc", size)

    def free(self, address: int) -> None:
        """Free memory that `malloc` returned."""
        self._call("cudaFree", address)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def stream_create(self) -> int:
        """Create a stream and return its handle."""
        return self._call("cudaStreamCreate")

    def stream_synchronize(self, stream: int) -> None:
        """Wait for the work in a stream."""
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)


class PyCuda:
    """`pycuda`, in the primary context of the first GPU and on the creating thread.

    Its asynchronous copies require page-locked memory, so synchronous ones are used. Raises
    ImportError, and DeviceError without a usable GPU.
    """

    name = "pycuda"

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver = driver
        # pycuda frees an allocation with its Python object, so the objects are kept by address.
        self._memory: Dict[int, Any] = {}
        self._streams: Dict[int, Any] = {}
        self._try("init", driver.init)
        self._context = self._try("Device", lambda: driver.Device(0).retain_primary_context())
        self._try("push", self._context.push)

    def _try(self, function: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise cuda_error(f"pycuda {function}", str(error)) from error

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the GPU and return their address."""
        memory = self._try("mem_alloc", lambda: self._driver.mem_alloc(size))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Free memory that `malloc` returned."""
        self._try("free", self._memory.pop(address).free)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU."""
        self._try("memcpy_htod", lambda: self._driver.memcpy_htod(address, array))

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array, after the work in the stream."""
        self.stream_synchronize(stream)
        self._try("memcpy_dtoh", lambda: self._driver.memcpy_dtoh(array, address))

    def stream_create(self) -> int:
        """Create a stream and return its handle."""
        stream = self._try("Stream", self._driver.Stream)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def stream_synchronize(self, stream: int) -> None:
        """Wait for the work in a stream."""
        self._try("synchronize", self._streams[stream].synchronize)

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        del self._streams[stream]
