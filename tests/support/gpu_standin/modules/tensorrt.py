"""A stand-in for the package `tensorrt`, to test the loader's control flow on a machine without it.

It is not TensorRT: its "engine" is the ONNX itself, which onnxruntime computes on what lies at the
addresses that the loader gave. So the answers are right only if every tensor was copied to the
right place, in the right size and in time. That real engines build is tested with TensorRT-RTX;
that real ones run can only be tested on a GPU.

    STANDIN_TENSORRT  its version
    STANDIN_WRONG     "1": its answers are one and a half times too large
    STANDIN_RUNTIME   "crash": making a Runtime ends the process
    STANDIN_MARK      a file that gets a line when an engine is deserialised, and when one is built
"""

import ctypes
import enum
import json
import os
import signal
from pathlib import Path

import numpy as np
import onnxruntime

__version__ = os.environ.get("STANDIN_TENSORRT", "10.3.0")
MAGIC = b"standin-engine\n"


def _mark(text):
    if "STANDIN_MARK" in os.environ:
        with Path(os.environ["STANDIN_MARK"]).open("a") as file:
            file.write(text + "\n")


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR

    def __init__(self):
        pass


class Logger(ILogger):
    def __init__(self, severity=Severity.WARNING):
        self.severity = severity


class IOutputAllocator:
    def __init__(self):
        pass


DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 INT64 BOOL UINT8 BF16")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
DeviceType = enum.Enum("DeviceType", "GPU DLA")
BuilderFlag = enum.Enum("BuilderFlag", "FP16 INT8 GPU_FALLBACK")


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1


_KINDS = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    # Like 8.5, which has neither int64 nor float64.
    "tensor(int64)": DataType.INT32,
    "tensor(int32)": DataType.INT32,
    "tensor(double)": DataType.FLOAT,
    "tensor(bool)": DataType.BOOL,
}
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32,
          DataType.BOOL: np.bool_}  # fmt: skip
_WANTED = {"tensor(int64)": np.int64, "tensor(double)": np.float64}


def _session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


class Runtime:
    def __init__(self, logger):
        if os.environ.get("STANDIN_RUNTIME") == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        self.logger = logger

    @property
    def engine_host_code_allowed(self):
        return False

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        raise AssertionError("the loader never lets an engine bring code for the host")

    def deserialize_cuda_engine(self, data):
        _mark("deserialised")
        if not data.startswith(MAGIC):
            self.logger.log(Severity.INFO, "nothing to see here")
            self.logger.log(Severity.ERROR, "the magic number is wrong")
            return None
        head, _, model = data[len(MAGIC) :].partition(b"\n")
        return Engine(_session(model), json.loads(head), self.logger)


class Engine:
    def __init__(self, session, head, logger):
        self.session, self.profiles, self.logger = session, head["profiles"], logger
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.tensors = {**self.inputs, **{o.name: o for o in session.get_outputs()}}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _KINDS[self.tensors[name].type]

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name, index):
        return [tuple(shape) for shape in self.profiles[name]]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine = engine
        self.shapes, self.addresses, self.allocators = {}, {}, {}

    def set_input_shape(self, name, shape):
        if name in self.engine.profiles:
            low, _, high = self.engine.profiles[name]
            # This runs on Python 3.8 too, whose zip knows no `strict`.
            if not all(a <= size <= b for a, size, b in zip(low, shape, high)):  # noqa: B905
                self.engine.logger.log(Severity.ERROR, "beyond the profile")
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address != 0

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def get_tensor_shape(self, name):
        known = {dim for i in self.engine.inputs.values() for dim in i.shape}
        if any(
            isinstance(dim, str) and dim not in known for dim in self.engine.tensors[name].shape
        ):
            return (-1,) * len(self.engine.tensors[name].shape)
        feed = {
            name: np.zeros(shape, _WANTED.get(kind, _NUMPY.get(_KINDS[kind])))
            for name, shape in self.shapes.items()
            for kind in [self.engine.inputs[name].type]
        }
        return self.engine.session.run([name], feed)[0].shape

    def execute_async_v3(self, stream):
        if os.environ.get("STANDIN_FAIL") == "execute":
            self.engine.logger.log(Severity.ERROR, "a kernel could not be launched")
            return False
        cuda = _cuda()
        cuda.standin_launch(ctypes.c_void_p(stream))
        feed = {}
        for name, tensor in self.engine.inputs.items():
            dtype, shape = np.dtype(_NUMPY[_KINDS[tensor.type]]), self.shapes[name]
            data = self._at(cuda, name, int(np.prod(shape)) * dtype.itemsize)
            found = np.frombuffer(data, dtype).reshape(shape)
            feed[name] = found.astype(_WANTED.get(tensor.type, dtype))
        outputs = self.engine.session.run(None, feed)
        for tensor, array in zip(self.engine.session.get_outputs(), outputs):  # noqa: B905
            if os.environ.get("STANDIN_WRONG") == "1":
                array = array * 1.5
            array = np.ascontiguousarray(array, _NUMPY[_KINDS[tensor.type]])
            allocator = self.allocators.get(tensor.name)
            if allocator is not None:
                address = allocator.reallocate_output_async(
                    tensor.name, self.addresses.get(tensor.name, 0), array.nbytes, 256, stream
                )
                if not address:
                    return True  # As with the real one: the allocator knows what failed.
                self.addresses[tensor.name] = address
                allocator.notify_shape(tensor.name, array.shape)
            place = self._at(cuda, tensor.name, array.nbytes)
            ctypes.memmove(place, array.ctypes.data, array.nbytes)
        return True

    def _at(self, cuda, name, size):
        address = self.addresses[name]
        room = cuda.standin_room(ctypes.c_void_p(address))
        assert room >= max(size, 1), f"{name} has {room} of {size} bytes"
        return (ctypes.c_char * size).from_address(address)


def _cuda():
    cuda = ctypes.CDLL(os.environ["STANDIN_LIBRARY"])
    cuda.standin_room.restype = ctypes.c_size_t
    return cuda


class Builder:
    num_DLA_cores = 2

    def __init__(self, logger):
        pass

    def create_network(self, flags):
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        used = "with" if config.cache.data else "without"
        _mark(f"built {used} a timing cache")
        if os.environ.get("STANDIN_FAIL") == "build":
            return None
        profiles = {name: shapes for p in config.profiles for name, shapes in p.shapes.items()}
        return MAGIC + json.dumps({"profiles": profiles}).encode() + b"\n" + network.model


class Input:
    is_shape_tensor = False

    def __init__(self, tensor):
        self.name = tensor.name
        self.shape = tuple(-1 if isinstance(dim, str) else dim for dim in tensor.shape)


class Network:
    num_layers = 0

    def read(self, model):
        self.model = model
        self.inputs = [Input(tensor) for tensor in _session(model).get_inputs()]
        self.num_inputs = len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, model):
        self.network.read(model)
        return True


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return b"timings"


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, smallest, usual, largest):
        self.shapes[name] = [smallest, usual, largest]


class Config:
    def __init__(self):
        self.profiles = []

    def set_memory_pool_limit(self, pool, size):
        pass

    def set_flag(self, flag):
        pass

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return 0
