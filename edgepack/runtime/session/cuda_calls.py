"""What a TensorRT session needs of CUDA, whoever makes the calls, and how they fail."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..errors import DeviceError


class Cuda(Protocol):
    """Memory of the first GPU, as addresses; streams, as handles. Each call raises DeviceError."""

    name: str

    def malloc(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""

    def free(self, address: int) -> None:
        """Give them back."""

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """A contiguous array to the GPU. It must live until the stream is synchronised."""

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """From the GPU into a contiguous array, filled once the stream is synchronised."""

    def stream_create(self) -> int:
        """A stream of its own."""

    def stream_synchronize(self, stream: int) -> None:
        """Wait for all that was put into it, and raise what failed there."""

    def stream_destroy(self, stream: int) -> None:
        """Give it back."""


def failed(call: str, why: str) -> DeviceError:
    """The error for a call of CUDA's that did not do what it should."""
    return DeviceError(
        "cuda-failed",
        "the GPU could not be used",
        why="{}: {}".format(call, why),
        hint="check the driver and its memory: nvidia-smi, on a Jetson tegrastats",
    )
