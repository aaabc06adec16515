"""Types of the parts of TensorRT that the loader calls, in 8.5, 10 and 11.

Only type checkers import this module, so no bundle contains it. TensorRT itself has no types, and
its modules are checked as `ModuleType`, whose attributes are unknown. Shapes are sequences of
sizes, with -1 for a dynamic axis.
"""

from __future__ import annotations

from typing import List, Optional, Protocol, Sequence, Tuple, Union

# Memory that TensorRT owns. Its class, IHostMemory, has the buffer protocol, as these two have.
Serialized = Union[bytes, memoryview]


class Log(Protocol):
    """Logger of `tensorrt_build.logger`."""

    messages: List[str]


class TimingCache(Protocol):
    """Timings of kernels from earlier builds."""

    def serialize(self) -> Serialized:
        """Return the cache as bytes."""


class NetworkTensor(Protocol):
    """Input of a network."""

    name: str
    shape: Sequence[int]
    is_shape_tensor: bool


class Layer(Protocol):
    """Layer of a network; `type` is a member of `LayerType`."""

    type: object


class Network(Protocol):
    """Network that the parser fills."""

    num_inputs: int
    num_layers: int

    def get_input(self, index: int) -> NetworkTensor:
        """Return an input."""

    def get_layer(self, index: int) -> Layer:
        """Return a layer."""


class ParserError(Protocol):
    """Fault that the parser found in an ONNX."""

    def node(self) -> int:
        """Return the number of the node; below 0 if it is unknown."""

    def node_name(self) -> str:
        """Return the name of the node; from TensorRT 10 on."""

    def node_operator(self) -> str:
        """Return the operator of the node; from TensorRT 10 on."""

    def desc(self) -> str:
        """Return the fault in words."""


class Profile(Protocol):
    """Shapes that an engine accepts."""

    def set_shape(
        self, name: str, smallest: Sequence[int], usual: Sequence[int], largest: Sequence[int]
    ) -> None:
        """Set the shapes of one input."""


class Config(Protocol):
    """Configuration of a build; flags and types are members of TensorRT's enumerations."""

    num_compute_capabilities: int
    default_device_type: object
    DLA_core: int

    def set_flag(self, flag: object) -> None:
        """Set a flag."""

    def set_memory_pool_limit(self, pool: object, size: int) -> None:
        """Limit a kind of memory, in bytes."""

    def set_compute_capability(self, capability: object, index: int) -> None:
        """Set a GPU to build for."""

    def add_optimization_profile(self, profile: Profile) -> int:
        """Add shapes; return their number, below 0 if they are refused."""

    def create_timing_cache(self, data: bytes) -> Optional[TimingCache]:
        """Read a timing cache; None if it is not one."""

    def set_timing_cache(self, cache: Optional[TimingCache], ignore_mismatch: bool) -> bool:
        """Use a timing cache; return False if it is of another GPU or version."""

    def get_timing_cache(self) -> Optional[TimingCache]:
        """Return the cache with this build's timings."""


class Builder(Protocol):
    """Builder of engines."""

    num_DLA_cores: int

    def create_network(self, flags: int) -> Network:
        """Create an empty network."""

    def create_builder_config(self) -> Config:
        """Create a configuration."""

    def create_optimization_profile(self) -> Profile:
        """Create an empty set of shapes."""

    def build_serialized_network(self, network: Network, config: Config) -> Optional[Serialized]:
        """Build an engine; None if that failed."""


class Engine(Protocol):
    """Engine that can run."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output."""

    def get_tensor_profile_shape(
        self, name: str, profile: int
    ) -> Tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Return the smallest, the usual and the largest shape of an input."""


class Allocator(Protocol):
    """Allocator of `gpu_memory.allocator_of`; `fault` is the error of a failed allocation."""

    shape: Sequence[int]
    fault: Optional[Exception]
