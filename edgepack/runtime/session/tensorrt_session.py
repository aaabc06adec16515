"""Sessions of TensorRT: 10, 11, and 8.5 of JetPack 5.

Deserialising an engine runs native code from it. The caller must have checked the engine's bytes,
and that it was built for this GPU and this TensorRT version; host code inside an engine is never
allowed.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import DeviceError, InputError
from ..tensor import Tensor
from .cuda import open_cuda
from .feeds import find_fault
from .gpu_memory import Memory, allocator_of, release
from .tensorrt_build import logger

if TYPE_CHECKING:
    from types import ModuleType

    from .tensorrt_types import Allocator

# trt.DataType -> numpy's element type.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


def import_tensorrt() -> ModuleType:
    """Import TensorRT. Raises DeviceError if it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise DeviceError(
            "engine-missing",
            "TensorRT cannot be imported on this device",
            why=str(error),
            hint="install JetPack or NVIDIA's packages",
        ) from error
    module: ModuleType = tensorrt
    return module


class TensorrtSession:
    """Engine in TensorRT, on the first GPU.

    Args:
        engine: the serialised engine, whose bytes and device the caller has checked.
        inputs: of the model, from the index.
        outputs: of the model, from the index.
        dla_core: the deep-learning accelerator that it was built for; None for none.

    Raises DeviceError if TensorRT refuses it, or if it is not this model's.
    """

    def __init__(
        self,
        engine: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        dla_core: Optional[int] = None,
    ) -> None:
        trt = import_tensorrt()
        self._title = f"TensorRT {trt.__version__}"
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self.output_names = [tensor.name for tensor in outputs]
        self._log = logger(trt)
        del self._log.messages[:]
        self._cuda = open_cuda()
        # The logger and the runtime have to outlive the engine.
        self._runtime = trt.Runtime(self._log)
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise self._failure("engine-refused", "{} refuses the engine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("engine-refused", "{} cannot start the engine")
        self._dtypes = self._signature(trt)
        # Shapes of the last valid feed, for which the tensors have their memory.
        self._shapes: Dict[str, Optional[Tuple[int, ...]]] = {}
        # Allocators of the outputs whose shape depends on the inputs' values.
        self._allocators: Dict[str, Allocator] = {}
        self._allocator = allocator_of(trt)
        # A context runs one inference at a time.
        self._lock = threading.Lock()
        self._memory = Memory(self._cuda)
        self._stream = self._cuda.stream_create()
        weakref.finalize(self, release, self._cuda, self._memory, self._stream)

    def _signature(self, trt: ModuleType) -> Dict[str, np.dtype]:
        """Return the element type of every tensor; raise DeviceError for another model."""
        engine, dtypes = self._engine, {}
        # Is an input -> names.
        names: Dict[bool, List[str]] = {True: [], False: []}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            names[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(name)
            kind = engine.get_tensor_dtype(name).name
            if kind not in DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise _mismatch(
                    f"{name} is {kind} in {engine.get_tensor_location(name)}, "
                    "which this loader cannot feed"
                )
            dtypes[name] = np.dtype(DTYPES[kind])
        for is_input, tensors in ((True, self._inputs), (False, self._outputs)):
            if set(names[is_input]) != {tensor.name for tensor in tensors}:
                raise _mismatch(
                    f"it has {', '.join(names[is_input])}; "
                    f"the model has {'; '.join(map(str, tensors))}"
                )
        return dtypes

    def _failure(self, code: str, what: str) -> DeviceError:
        """Return an error with the messages of TensorRT since the last one."""
        messages = "\n".join(dict.fromkeys(self._log.messages))
        del self._log.messages[:]
        return DeviceError(
            code,
            what.format(self._title),
            why=messages or "it gave no reason",
            hint="python3 BUNDLE finish --force rebuilds the engine",
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Run one inference: arrays by input name in, arrays by output name out.

        Raises InputError if an input does not fit the model or the engine's shapes, DeviceError if
        TensorRT or CUDA fails.
        """
        with self._lock:
            self._prepare(inputs)
            # These arrays must live until the stream is synchronised.
            arrays: Dict[str, np.ndarray] = {}
            for tensor in self._inputs:
                arrays[tensor.name] = self._to_engine(tensor, inputs[tensor.name])
            try:
                for name, array in arrays.items():
                    self._cuda.copy_in(self._memory.of(name, array.nbytes), array, self._stream)
                self._execute()
                outputs = {name: self._copy_out(name) for name in self.output_names}
            finally:
                self._cuda.stream_synchronize(self._stream)
            return {
                tensor.name: outputs[tensor.name].astype(tensor.dtype, copy=False)
                for tensor in self._outputs
            }

    def _execute(self) -> None:
        del self._log.messages[:]
        for allocator in self._allocators.values():
            allocator.fault = None
        started = self._context.execute_async_v3(self._stream)
        for allocator in self._allocators.values():
            if allocator.fault is not None:
                raise allocator.fault
        if not started:
            raise self._failure("engine-failed", "{} could not run the engine")

    def _prepare(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Check a feed; for new shapes, pass them to TensorRT and allocate every tensor."""
        # The usual call repeats the last shapes and needs no further check.
        shapes = {name: getattr(array, "shape", None) for name, array in inputs.items()}
        dtypes = all(
            tensor.name in inputs and inputs[tensor.name].dtype == tensor.dtype
            for tensor in self._inputs
        )
        if shapes == self._shapes and dtypes:
            return
        fault = find_fault(inputs, self._inputs)
        if fault is not None:
            raise fault
        # Until all of this succeeds, no shapes are valid.
        self._shapes = {}
        del self._log.messages[:]
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self._beyond(name, array.shape)
            self._allocate(name, array.shape)
        for name in self.output_names:
            shape = tuple(self._context.get_tensor_shape(name))
            # -1 is a size that depends on the inputs' values.
            if -1 not in shape:
                self._allocate(name, shape)
            elif name not in self._allocators:
                self._allocators[name] = self._allocator(self._memory)
                self._context.set_output_allocator(name, self._allocators[name])
        self._shapes = shapes

    def _allocate(self, name: str, shape: Sequence[int]) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * self._dtypes[name].itemsize
        # TensorRT refuses a null address, even for a tensor without elements.
        if not self._context.set_tensor_address(name, self._memory.of(name, max(size, 1))):
            raise self._failure("engine-failed", "{} refuses the memory of " + name)

    def _beyond(self, name: str, shape: Sequence[int]) -> InputError:
        smallest, _, largest = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
        return InputError(
            "input-profile",
            "an input has a shape outside the engine's limits",
            why=f"{name} is {tuple(shape)}; the engine takes {smallest} to {largest}",
            hint="set wider limits in the manifest, and build again",
        )

    def _to_engine(self, tensor: Tensor, array: np.ndarray) -> np.ndarray:
        """Convert an array to contiguous memory and to the engine's element type.

        TensorRT 8.5 has no int64, and no version has float64.
        """
        dtype = self._dtypes[tensor.name]
        if dtype.kind == "i" and array.dtype.itemsize > dtype.itemsize and array.size:
            limits = np.iinfo(dtype)
            if array.min() < limits.min or array.max() > limits.max:
                raise InputError(
                    "input-range",
                    "an input has a value that the engine cannot hold",
                    why=f"{tensor.name} is {dtype} in the engine",
                    hint=f"keep the values in range: this TensorRT has no {tensor.dtype}",
                )
        return np.ascontiguousarray(array, dtype)

    def _copy_out(self, name: str) -> np.ndarray:
        """Start copying an output to the host; it is complete once the stream is synchronised."""
        allocator = self._allocators.get(name)
        shape = tuple(self._context.get_tensor_shape(name))
        if allocator is not None:
            # Only TensorRT knows the shape, and told the allocator while it ran.
            shape = tuple(allocator.shape)
        array = np.empty(shape, self._dtypes[name])
        if array.size:
            address = self._memory.of(name, array.nbytes)
            self._cuda.copy_out(array, address, self._stream)
        return array


def _mismatch(why: str) -> DeviceError:
    return DeviceError(
        "engine-signature",
        "the engine does not match the bundle's model",
        why=why,
        hint="run another variant of the bundle: python3 BUNDLE info",
    )
