"""GPU memory and streams through ctypes on libcudart, without any package."""

from __future__ import annotations

import ctypes
import glob
import os
import sys
from typing import Dict, List, Tuple

import numpy as np

from .cuda_calls import cuda_error

# Newest first; a driver that is too old for one may run the next.
SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
# Folders of pip's packages and of CUDA's installer, neither of which is on the linker's path.
_IN_PACKAGES = "nvidia/*/lib"
_INSTALLED = "/usr/local/cuda/lib64"

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class Libcudart:
    """CUDA's runtime library, called through ctypes.

    Args:
        path: a file, or a name that the linker finds.

    Raises OSError if it cannot be loaded, and DeviceError without a usable GPU.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._library = ctypes.CDLL(path)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        # Without argument types ctypes would pass addresses as 32-bit integers.
        signatures: Dict[str, Tuple[type, ...]] = {
            "cudaGetDeviceCount": (ctypes.POINTER(number),),
            "cudaMalloc": (ctypes.POINTER(pointer), size),
            "cudaFree": (pointer,),
            "cudaMemcpyAsync": (pointer, pointer, size, number, pointer),
            "cudaStreamCreate": (ctypes.POINTER(pointer),),
            "cudaStreamSynchronize": (pointer,),
            "cudaStreamDestroy": (pointer,),
        }
        for function, arguments in signatures.items():
            getattr(self._library, function).argtypes = arguments
            getattr(self._library, function).restype = number
        self._library.cudaGetErrorString.argtypes = (number,)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        count = number()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value == 0:
            raise cuda_error("cudaGetDeviceCount", "there is no GPU")

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            text = self._library.cudaGetErrorString(status) or b""
            raise cuda_error(function, f"error {status}: {text.decode('utf-8', 'replace')}")

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the GPU and return their address."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), size)
        return address.value or 0

    def free(self, address: int) -> None:
        """Free memory that `malloc` returned."""
        self._call("cudaFree", address)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU."""
        self._call(
            "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, HOST_TO_DEVICE, stream
        )

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array."""
        self._call(
            "cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST, stream
        )

    def stream_create(self) -> int:
        """Create a stream and return its handle."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def stream_synchronize(self, stream: int) -> None:
        """Wait for the work in a stream."""
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)


def libraries() -> List[str]:
    """Return candidates for libcudart: names for the linker, then files, newest first.

    For example libcudart.so.12, then .../site-packages/nvidia/cuda_runtime/lib/libcudart.so.12.
    """
    candidates = list(SONAMES)
    # Absolute paths only: a relative one could load a library from the working directory.
    folders = [entry for entry in sys.path if os.path.isabs(entry)]
    patterns = [os.path.join(glob.escape(folder), _IN_PACKAGES) for folder in folders]
    for soname in SONAMES:
        for pattern in [*patterns, _INSTALLED]:
            candidates += sorted(glob.glob(os.path.join(pattern, soname)))
    return list(dict.fromkeys(candidates))
