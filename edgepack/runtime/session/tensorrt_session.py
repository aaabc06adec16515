"""The TensorRT engine, as the loader uses it: 10, 11, and 8.5 of JetPack 5.

Deserialising an engine runs native code out of it. Whoever makes a session has proved its bytes
and that it was built for this GPU and this very TensorRT; code for the host inside of an engine is
never allowed.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from ..errors import DeviceError, InputError
from ..tensor import Tensor
from .cuda import open_cuda
from .feeds import explain
from .gpu_memory import Memory, allocator_of, release
from .tensorrt_build import logger

# Names of trt.DataType that numpy has, too.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


def import_tensorrt() -> Any:
    """The module. Raises DeviceError where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise DeviceError(
            "engine-missing",
            "TensorRT cannot be imported on this device",
            why=str(error),
            hint="it comes with JetPack or from NVIDIA's packages",
        ) from error
    return tensorrt


class TensorrtSession:
    """A built engine in TensorRT, on the first GPU.

    Args:
        engine: the serialised engine, its bytes and its device proved.
        inputs: of the model, as the index has them.
        outputs: the same.
        dla_core: the deep-learning accelerator that it was built for; None for none.

    Raises DeviceError where TensorRT does not take it, or where it is not this model's.
    """

    def __init__(
        self,
        engine: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        dla_core: Optional[int] = None,
    ) -> None:
        trt = import_tensorrt()
        self._title = "TensorRT {}".format(trt.__version__)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self.output_names = [tensor.name for tensor in outputs]
        self._log = logger(trt)
        del self._log.messages[:]
        self._cuda = open_cuda()
        # TensorRT wants both to outlive what they made.
        self._runtime = trt.Runtime(self._log)
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise self._failure("engine-refused", "{} does not take the engine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("engine-refused", "{} cannot start the engine")
        self._dtypes = self._signature(trt)
        # Of the last feed that fitted; the memory is placed for them.
        self._shapes: Dict[str, Any] = {}
        self._unknown: Dict[str, Any] = {}
        self._allocator = allocator_of(trt)
        # One context runs one inference at a time.
        self._lock = threading.Lock()
        self._memory = Memory(self._cuda)
        self._stream = self._cuda.stream_create()
        weakref.finalize(self, release, self._cuda, self._memory, self._stream)

    def _signature(self, trt: Any) -> Dict[str, np.dtype]:
        """Element type of every tensor as the engine has it."""
        engine, dtypes = self._engine, {}
        named: Dict[bool, List[str]] = {True: [], False: []}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            named[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(name)
            kind = engine.get_tensor_dtype(name).name
            if kind not in DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise _other(
                    "{} is {} in {}, which this loader cannot feed".format(
                        name, kind, engine.get_tensor_location(name)
                    )
                )
            dtypes[name] = np.dtype(DTYPES[kind])
        for is_input, tensors in ((True, self._inputs), (False, self._outputs)):
            if set(named[is_input]) != {tensor.name for tensor in tensors}:
                raise _other(
                    "it has {}; the model has {}".format(
                        ", ".join(named[is_input]), "; ".join(map(str, tensors))
                    )
                )
        return dtypes

    def _failure(self, code: str, what: str) -> DeviceError:
        """An error with all that TensorRT complained of since the last."""
        told = "\n".join(dict.fromkeys(self._log.messages))
        del self._log.messages[:]
        return DeviceError(
            code,
            what.format(self._title),
            why=told or "it gave no reason",
            hint="python3 BUNDLE finish --force builds the engine anew",
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference: arrays by input name in, arrays by output name out.

        Raises InputError where an input does not fit the model or the shapes that the engine was
        built for, DeviceError where TensorRT or CUDA fails.
        """
        with self._lock:
            self._settle(inputs)
            # What is copied in must live until the stream is synchronised.
            fed = {
                tensor.name: self._as_fed(tensor, inputs[tensor.name]) for tensor in self._inputs
            }
            try:
                for name, array in fed.items():
                    self._cuda.copy_in(self._memory.of(name, array.nbytes), array, self._stream)
                self._execute()
                found = {name: self._copied(name) for name in self.output_names}
            finally:
                self._cuda.stream_synchronize(self._stream)
            return {
                tensor.name: found[tensor.name].astype(tensor.dtype, copy=False)
                for tensor in self._outputs
            }

    def _execute(self) -> None:
        del self._log.messages[:]
        for allocator in self._unknown.values():
            allocator.fault = None
        started = self._context.execute_async_v3(self._stream)
        for allocator in self._unknown.values():
            if allocator.fault is not None:
                raise allocator.fault
        if not started:
            raise self._failure("engine-failed", "{} could not run the engine")

    def _settle(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Check a feed; where its shapes are new, tell them and give every tensor its memory."""
        shapes = {name: getattr(array, "shape", None) for name, array in inputs.items()}
        dtypes = all(
            tensor.name in inputs and inputs[tensor.name].dtype == tensor.dtype
            for tensor in self._inputs
        )
        if shapes == self._shapes and dtypes:
            return
        fault = explain(inputs, self._inputs)
        if fault is not None:
            raise fault
        self._shapes = {}
        del self._log.messages[:]
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self._beyond(name, array.shape)
            self._place(name, array.shape)
        for name in self.output_names:
            shape = tuple(self._context.get_tensor_shape(name))
            if -1 not in shape:
                self._place(name, shape)
            elif name not in self._unknown:
                self._unknown[name] = self._allocator(self._memory)
                self._context.set_output_allocator(name, self._unknown[name])
        self._shapes = shapes

    def _place(self, name: str, shape: Sequence[int]) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * self._dtypes[name].itemsize
        # TensorRT takes no null address, not even for a tensor without elements.
        if not self._context.set_tensor_address(name, self._memory.of(name, max(size, 1))):
            raise self._failure("engine-failed", "{} does not take the memory of " + name)

    def _beyond(self, name: str, shape: Sequence[int]) -> InputError:
        smallest, _, largest = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
        return InputError(
            "input-profile",
            "an input has a shape that the engine was not built for",
            why="{} is {}; the engine takes {} to {}".format(name, tuple(shape), smallest, largest),
            hint="state larger shapes for it in the manifest, and build again",
        )

    def _as_fed(self, tensor: Tensor, array: np.ndarray) -> np.ndarray:
        """Contiguous, and in the engine's own element type: 8.5 has no int64, and none float64."""
        dtype = self._dtypes[tensor.name]
        if dtype.kind == "i" and array.dtype.itemsize > dtype.itemsize and array.size:
            known = np.iinfo(dtype)
            if array.min() < known.min or array.max() > known.max:
                raise InputError(
                    "input-range",
                    "an input has a value that the engine cannot hold",
                    why="{} is {} there".format(tensor.name, dtype),
                    hint="this TensorRT has no {}".format(tensor.dtype),
                )
        return np.ascontiguousarray(array, dtype)

    def _copied(self, name: str) -> np.ndarray:
        """An output on its way to the host; there once the stream is synchronised."""
        allocator = self._unknown.get(name)
        shape = self._context.get_tensor_shape(name) if allocator is None else allocator.shape
        array = np.empty(tuple(shape), self._dtypes[name])
        if array.size:
            address = self._memory.of(name, array.nbytes)
            self._cuda.copy_out(array, address, self._stream)
        return array


def _other(why: str) -> DeviceError:
    return DeviceError(
        "engine-signature",
        "the engine is not one of this model that the loader can run",
        why=why,
        hint="run the bundle in another variant: python3 BUNDLE info",
    )
