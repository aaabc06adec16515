"""Interface of the CUDA calls that a TensorRT session needs, and their error."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..errors import DeviceError


class Cuda(Protocol):
    """Memory of the first GPU as addresses, streams as handles. Failed calls raise DeviceError."""

    name: str

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the GPU and return their address."""

    def free(self, address: int) -> None:
        """Free memory that `malloc` returned."""

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU; it must live until the stream is synchronised."""

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array, filled once the stream is synchronised."""

    def stream_create(self) -> int:
        """Create a stream and return its handle."""

    def stream_synchronize(self, stream: int) -> None:
        """Wait for the work in a stream, and raise its errors."""

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""


def cuda_error(call: str, why: str) -> DeviceError:
    """Return the error for a failed CUDA call."""
    return DeviceError(
        "cuda-failed",
        "the GPU cannot be used",
        why=f"{call}: {why}",
        hint="check the driver and the GPU's memory with nvidia-smi, or tegrastats on a Jetson",
    )
