"""A TensorRT engine from an ONNX whose types say everything.

One recipe for every TensorRT, told apart by what its module has and not by its number:

    10, 11        a strongly typed network: all precision stands in the ONNX
    TensorRT-RTX  the same, and it can build for a GPU that is not there
    8.5           knows no strong typing: explicit batch, and the FP16 and INT8 builder flags, which
                  with Q/DQ in the ONNX quantize nothing else

The module is a parameter, so that what runs on the device is tested with the TensorRT that a
machine without a GPU can have.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ..errors import DeviceError

Shape = Tuple[int, ...]
Profiles = Mapping[str, Tuple[Shape, Shape, Shape]]

# A build on a Jetson can take ten minutes, and TensorRT says nothing meanwhile.
BEAT_SECONDS = 10.0
# Of everything that TensorRT complained of, what an error message can hold.
SHOWN = 8


@dataclass(frozen=True)
class Options:
    """What a build may use, and for which shapes.

    Attributes:
        workspace_bytes: memory that TensorRT may use for its kernels; 0 for its own bound.
        profiles: input -> the smallest, the usual and the largest shape; of every input with a
            dynamic axis.
        dla_core: the accelerator that takes what it can, the GPU taking the rest; None for none.
        compute_capability: "8.9": the GPU to build for, where the builder can build for one that
            is not there (TensorRT-RTX); "" for the GPU of this machine.
    """

    workspace_bytes: int = 0
    profiles: Profiles = field(default_factory=dict)
    dla_core: Optional[int] = None
    compute_capability: str = ""


def build(
    trt: Any, model: bytes, options: Options, timing_cache: bytes, beat: Callable[[float], None]
) -> Tuple[bytes, bytes]:
    """Build an engine.

    Args:
        trt: the module `tensorrt`, or `tensorrt_rtx`.
        model: the serialised ONNX.
        options: see there.
        timing_cache: of an earlier build; b"" for none. One of another GPU or version is left
            unused: it only saves time.
        beat: called from another thread, every BEAT_SECONDS, with the seconds that have passed.

    Returns:
        The engine, and the timing cache for the next build.

    Raises:
        DeviceError: engine-unusable, engine-parse (with the node and its operator),
            engine-profile, engine-dla, engine-build.
    """
    log = logger(trt)
    del log.messages[:]
    try:
        builder = trt.Builder(log)
    except Exception as error:  # What pybind raises for a library that cannot start
        raise DeviceError(
            "engine-unusable",
            "TensorRT {} cannot build here".format(trt.__version__),
            why=_told(log, str(error)),
            hint="check the driver: nvidia-smi, on a Jetson tegrastats",
        ) from error
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    # The parser owns the weights: it has to live until the engine is built.
    network, parser = _parsed(trt, builder, model, typed, log)
    config = builder.create_builder_config()
    if not typed:
        _allow_precisions(trt, network, config)
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    _set_gpu(trt, config, options.compute_capability)
    _set_dla(trt, builder, config, options.dla_core)
    _set_profile(builder, network, config, options.profiles, log)
    _set_timing_cache(config, timing_cache)
    with _Heartbeat(beat):
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise DeviceError(
            "engine-build",
            "TensorRT {} could not build an engine".format(trt.__version__),
            why=_told(log, "it gave no reason"),
            hint="the same bundle runs in onnxruntime where its profile allows it",
        )
    del parser
    cache = config.get_timing_cache()
    return bytes(engine), b"" if cache is None else bytes(cache.serialize())


# TensorRT keeps the first logger that a process gives it, and every later one says nothing.
_LOGGERS: Dict[str, Any] = {}


def logger(trt: Any) -> Any:
    """This process's logger for a TensorRT module; `messages` holds errors since the last build."""
    if trt.__name__ not in _LOGGERS:

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: List[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    self.messages.append(message.strip())

        _LOGGERS[trt.__name__] = Log()
    return _LOGGERS[trt.__name__]


def _told(log: Any, otherwise: str) -> str:
    return "\n".join(dict.fromkeys(log.messages[:SHOWN])) or otherwise


def _parsed(trt: Any, builder: Any, model: bytes, typed: bool, log: Any) -> Tuple[Any, Any]:
    flags = trt.NetworkDefinitionCreationFlag
    # The flag's number differs between 10 and 11; 8.5 wants its batch axis told.
    network = builder.create_network(
        1 << int(flags.STRONGLY_TYPED if typed else flags.EXPLICIT_BATCH)
    )
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        faults = [parser.get_error(i) for i in range(parser.num_errors)]
        raise DeviceError(
            "engine-parse",
            "TensorRT {} does not take this ONNX".format(trt.__version__),
            why="\n".join(map(_fault, faults[:SHOWN])) or _told(log, "it gave no reason"),
            hint="a quantized layer can stay float, --chain quantize:exclude=NODE,half; for an "
            "operator that TensorRT lacks, take a profile of another engine",
        )
    return network, parser


def _fault(error: Any) -> str:
    """One complaint of the parser, with the node; its name is told from TensorRT 10 on."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = "{} ({})".format(name, operator) if name and operator else name or operator
    if not where and error.node() >= 0:
        where = "node {}".format(error.node())
    return ": ".join(filter(None, (where, error.desc().strip())))


def _allow_precisions(trt: Any, network: Any, config: Any) -> None:
    config.set_flag(trt.BuilderFlag.FP16)
    kinds = {network.get_layer(index).type for index in range(network.num_layers)}
    # Without Q/DQ the flag would ask for a calibrator.
    if trt.LayerType.DEQUANTIZE in kinds:
        config.set_flag(trt.BuilderFlag.INT8)


def _set_gpu(trt: Any, config: Any, capability: str) -> None:
    if not capability:
        return
    known = getattr(trt, "ComputeCapability", None)
    wanted = getattr(known, "SM" + capability.replace(".", ""), None)
    if wanted is None:
        raise DeviceError(
            "engine-unusable",
            "TensorRT {} cannot build for compute capability {}".format(
                trt.__version__, capability
            ),
            why="it builds for the GPU of its machine alone"
            if known is None
            else "it does not know that GPU",
            hint="leave the compute capability out on the device",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(wanted, 0)


def _set_dla(trt: Any, builder: Any, config: Any, core: Optional[int]) -> None:
    if core is None:
        return
    found = int(builder.num_DLA_cores)
    if core >= found:
        raise DeviceError(
            "engine-dla",
            "there is no deep-learning accelerator number {} here".format(core),
            why="TensorRT {} drives {} of them on this device; of the releases from 10.8 on most "
            "drive none".format(trt.__version__, found),
            hint="leave engine.dla_core out of the profile: the GPU takes every layer",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_profile(builder: Any, network: Any, config: Any, profiles: Profiles, log: Any) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    missing = [tensor.name for tensor in dynamic if tensor.name not in profiles]
    if missing:
        raise _bad_profile("no shapes are stated for {}".format(", ".join(missing)))
    by_value = [tensor.name for tensor in inputs if tensor.is_shape_tensor]
    if by_value:
        raise _bad_profile("the values of {} decide other shapes".format(", ".join(by_value)))
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        smallest, usual, largest = profiles[tensor.name]
        fits = all(
            len(shape) == len(tensor.shape)
            and all(fixed in (-1, size) for fixed, size in zip(tensor.shape, shape))
            for shape in (smallest, usual, largest)
        ) and all(0 < a <= b <= c for a, b, c in zip(smallest, usual, largest))
        if not fits:
            raise _bad_profile(
                "{} is {}, and its shapes are {}, {} and {}".format(
                    tensor.name, tuple(tensor.shape), smallest, usual, largest
                )
            )
        profile.set_shape(tensor.name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise _bad_profile(_told(log, "TensorRT refused them"))


def _bad_profile(why: str) -> DeviceError:
    return DeviceError(
        "engine-profile",
        "TensorRT cannot build for the shapes that the bundle states",
        why=why,
        hint="state min, opt and max of every dynamic axis in the manifest, and build again",
    )


def _set_timing_cache(config: Any, timing_cache: bytes) -> None:
    cache = config.create_timing_cache(timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


class _Heartbeat:
    """Calls `beat` from a thread while its block runs; what `beat` raised is raised at the end."""

    def __init__(self, beat: Callable[[float], None]) -> None:
        self._beat = beat
        self._done = threading.Event()
        self._raised: List[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            while not self._done.wait(BEAT_SECONDS):
                self._beat(time.monotonic() - started)
        except BaseException as error:  # noqa: BLE001  A closed pipe ends the build that nobody hears
            self._raised.append(error)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._done.set()
        self._thread.join()
        if self._raised and kind is None:
            raise self._raised[0]
