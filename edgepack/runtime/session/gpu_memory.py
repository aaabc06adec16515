"""The GPU memory of a session's tensors."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from ..errors import DeviceError
from .cuda_calls import Cuda


class Memory:
    """GPU memory by tensor name: it grows as shapes need it, and is reused while they do not."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._held: Dict[str, Tuple[int, int]] = {}

    def of(self, name: str, size: int) -> int:
        """Address of at least `size` bytes for a tensor."""
        address, held = self._held.get(name, (0, 0))
        if held < size:
            if address:
                del self._held[name]
                self._cuda.free(address)
            address = self._cuda.malloc(size)
            self._held[name] = (address, size)
        return address

    def release(self) -> None:
        """Give all of it back."""
        while self._held:
            self._cuda.free(self._held.popitem()[1][0])


def allocator_of(trt: Any) -> Any:
    """The class that gives memory to an output whose shape depends on the values of the inputs."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self, memory: Memory) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = memory
            self.shape: Tuple[int, ...] = ()
            self.fault: Optional[DeviceError] = None

        def reallocate_output(self, name: str, memory: Any, size: int, alignment: int) -> int:
            try:
                return self.memory.of(name, max(size, 1))
            except DeviceError as error:  # An exception does not pass through TensorRT.
                self.fault = error
                return 0

        def reallocate_output_async(
            self, name: str, memory: Any, size: int, alignment: int, stream: Any
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator


def release(cuda: Cuda, memory: Memory, stream: int) -> None:
    """Give back what a session held; at the end of the process CUDA may be gone before."""
    try:
        memory.release()
        cuda.stream_destroy(stream)
    except DeviceError:
        return
