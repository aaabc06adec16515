"""GPU memory of a session's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Optional, Sequence, Tuple

from ..errors import DeviceError
from .cuda_calls import Cuda

if TYPE_CHECKING:
    from types import ModuleType

    from .tensorrt_types import Allocator


class Memory:
    """GPU memory by tensor name, reused between calls and enlarged on demand."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        # Tensor name -> address and size of its memory, which only grows: a batch of 8 after one of
        # 32 reuses the larger block.
        self._blocks: Dict[str, Tuple[int, int]] = {}

    def of(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes for a tensor."""
        address, capacity = self._blocks.get(name, (0, 0))
        if capacity < size:
            if address:
                del self._blocks[name]
                self._cuda.free(address)
            address = self._cuda.malloc(size)
            self._blocks[name] = (address, size)
        return address

    def release(self) -> None:
        """Free all of it."""
        while self._blocks:
            self._cuda.free(self._blocks.popitem()[1][0])


def allocator_of(trt: ModuleType) -> Callable[[Memory], Allocator]:
    """Return the allocator class for outputs whose shape depends on the inputs' values."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self, memory: Memory) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = memory
            self.shape: Tuple[int, ...] = ()
            self.fault: Optional[DeviceError] = None

        def reallocate_output(self, name: str, memory: object, size: int, alignment: int) -> int:
            try:
                return self.memory.of(name, max(size, 1))
            except DeviceError as error:  # An exception cannot pass through TensorRT.
                self.fault = error
                return 0

        def reallocate_output_async(
            self, name: str, memory: object, size: int, alignment: int, stream: object
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Sequence[int]) -> None:
            self.shape = tuple(shape)

    # TensorRT's classes have no types, so the checker cannot follow this one.
    allocator: Callable[[Memory], Allocator] = OutputAllocator
    return allocator


def release(cuda: Cuda, memory: Memory, stream: int) -> None:
    """Free a session's memory and stream; CUDA may be gone already when the process ends."""
    try:
        memory.release()
        cuda.stream_destroy(stream)
    except DeviceError:
        return
