"""Build a TensorRT engine from an ONNX whose types fix all precision.

One recipe serves every TensorRT; features are detected from the module, not from its version:

    10, 11        a strongly typed network: the ONNX states all precision
    TensorRT-RTX  likewise, and it can build for an absent GPU
    8.5           has no strong typing: explicit batch, and the FP16 and INT8 builder flags, which
                  with Q/DQ in the ONNX quantize nothing else

The module is a parameter, so that tests on machines without a GPU can pass another one.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple

from ..errors import DeviceError

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Type

    from .tensorrt_types import Builder, Config, Log, Network, NetworkTensor, ParserError

Shape = Tuple[int, ...]
Profiles = Mapping[str, Tuple[Shape, Shape, Shape]]

# A build on a Jetson can take ten minutes without any output from TensorRT.
BEAT_SECONDS = 10.0
# TensorRT's messages that are quoted in an error.
SHOWN = 8


@dataclass(frozen=True)
class Options:
    """Resources and shapes of a build.

    Attributes:
        workspace_bytes: memory limit for TensorRT's kernels; 0 for its default.
        profiles: input -> its smallest, usual and largest shape; for every input with a dynamic
            axis.
        dla_core: the accelerator that runs the layers that it supports, before the GPU; None for
            none.
        compute_capability: "8.9", the GPU to build for if the builder supports absent ones
            (TensorRT-RTX); "" for the GPU of this machine.
    """

    workspace_bytes: int = 0
    profiles: Profiles = field(default_factory=dict)
    dla_core: Optional[int] = None
    compute_capability: str = ""


def build(
    trt: ModuleType,
    model: bytes,
    options: Options,
    timing_cache: bytes,
    beat: Callable[[float], None],
) -> Tuple[bytes, bytes]:
    """Build an engine.

    Args:
        trt: the module `tensorrt`, or `tensorrt_rtx`.
        model: the serialised ONNX.
        options: see there.
        timing_cache: of an earlier build; b"" for none. One of another GPU or version is ignored,
            since it only saves time.
        beat: called from another thread, every BEAT_SECONDS, with the elapsed seconds.

    Returns:
        The engine, and the timing cache for the next build.

    Raises:
        DeviceError: engine-unusable, engine-parse (with the node and its operator),
            engine-profile, engine-dla, engine-build.
    """
    log = logger(trt)
    del log.messages[:]
    try:
        builder: Builder = trt.Builder(log)
    except Exception as error:  # pybind may raise anything if the library cannot start.
        raise DeviceError(
            "engine-unusable",
            f"TensorRT {trt.__version__} cannot build here",
            why=_messages(log, str(error)),
            hint="check the driver with nvidia-smi, or tegrastats on a Jetson",
        ) from error
    # Absent in 8.5.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    # The parser owns the weights: it has to live until the engine is built.
    network, parser = _parse(trt, builder, model, typed, log)
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
            f"TensorRT {trt.__version__} could not build an engine",
            why=_messages(log, "it gave no reason"),
            hint="use a profile that allows onnxruntime too",
        )
    del parser
    cache = config.get_timing_cache()
    if cache is None:
        return bytes(engine), b""
    return bytes(engine), bytes(cache.serialize())


# TensorRT keeps the first logger of a process and ignores later ones, so it is shared.
_LOGGERS: Dict[str, Log] = {}


def logger(trt: ModuleType) -> Log:
    """Return the process's logger for a TensorRT module; its `messages` are the latest errors."""
    if trt.__name__ not in _LOGGERS:

        class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: List[str] = []

            def log(self, severity: object, message: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    self.messages.append(message.strip())

        _LOGGERS[trt.__name__] = ErrorLog()
    return _LOGGERS[trt.__name__]


def _messages(log: Log, otherwise: str) -> str:
    return "\n".join(dict.fromkeys(log.messages[:SHOWN])) or otherwise


def _parse(
    trt: ModuleType, builder: Builder, model: bytes, typed: bool, log: Log
) -> Tuple[Network, object]:
    """Parse an ONNX; return the network, and the parser that owns its weights."""
    flags = trt.NetworkDefinitionCreationFlag
    # The value of STRONGLY_TYPED differs between 10 and 11, and 8.5 requires EXPLICIT_BATCH.
    flag = flags.STRONGLY_TYPED if typed else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        faults = []
        for i in range(min(parser.num_errors, SHOWN)):
            faults.append(_format_fault(parser.get_error(i)))
        raise DeviceError(
            "engine-parse",
            f"TensorRT {trt.__version__} refuses this ONNX",
            why="\n".join(faults) or _messages(log, "it gave no reason"),
            hint="keep a quantized layer in float with --chain quantize:exclude=NODE,half; for an "
            "operator that TensorRT lacks, use a profile of another engine",
        )
    return network, parser


def _format_fault(error: ParserError) -> str:
    """Format a parser error after its node: `conv1 (Conv): unsupported`, or `node 7: ...`."""
    name = operator = ""
    # TensorRT names the node only from version 10 on.
    if hasattr(error, "node_name"):
        name, operator = error.node_name(), error.node_operator()
    node = name or operator
    if name and operator:
        node = f"{name} ({operator})"
    if not node and error.node() >= 0:
        node = f"node {error.node()}"
    return ": ".join(filter(None, (node, error.desc().strip())))


def _allow_precisions(trt: ModuleType, network: Network, config: Config) -> None:
    config.set_flag(trt.BuilderFlag.FP16)
    kinds = {network.get_layer(index).type for index in range(network.num_layers)}
    # Without Q/DQ the INT8 flag would require a calibrator.
    if trt.LayerType.DEQUANTIZE in kinds:
        config.set_flag(trt.BuilderFlag.INT8)


def _set_gpu(trt: ModuleType, config: Config, capability: str) -> None:
    if not capability:
        return
    capabilities = getattr(trt, "ComputeCapability", None)
    # "8.9" is the member SM89.
    gpu = getattr(capabilities, "SM" + capability.replace(".", ""), None)
    if gpu is None:
        why = "it does not support that GPU"
        if capabilities is None:
            why = "it builds only for the GPU of its machine"
        raise DeviceError(
            "engine-unusable",
            f"TensorRT {trt.__version__} cannot build for compute capability {capability}",
            why=why,
            hint="omit the compute capability on the device",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(gpu, 0)


def _set_dla(trt: ModuleType, builder: Builder, config: Config, core: Optional[int]) -> None:
    if core is None:
        return
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        raise DeviceError(
            "engine-dla",
            f"this device has no deep-learning accelerator number {core}",
            why=f"TensorRT {trt.__version__} supports {cores} of them on this device; "
            "most releases from 10.8 on support none",
            hint="remove engine.dla_core from the profile: the GPU then runs every layer",
        )
    # Layers that the accelerator does not support run on the GPU.
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_profile(
    builder: Builder, network: Network, config: Config, profiles: Profiles, log: Log
) -> None:
    inputs = list(map(network.get_input, range(network.num_inputs)))
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    missing = [tensor.name for tensor in dynamic if tensor.name not in profiles]
    if missing:
        raise _bad_profile(f"there are no shapes for {', '.join(missing)}")
    by_value = [tensor.name for tensor in inputs if tensor.is_shape_tensor]
    if by_value:
        raise _bad_profile(f"other shapes depend on the values of {', '.join(by_value)}")
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        smallest, usual, largest = profiles[tensor.name]
        if not _profile_fits(tensor, smallest, usual, largest):
            raise _bad_profile(
                f"{tensor.name} is {tuple(tensor.shape)}, "
                f"and its shapes are {smallest}, {usual} and {largest}"
            )
        profile.set_shape(tensor.name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise _bad_profile(_messages(log, "TensorRT refused them"))


def _profile_fits(tensor: NetworkTensor, smallest: Shape, usual: Shape, largest: Shape) -> bool:
    """Return True if an input accepts three shapes, which must be in order of size.

    (-1, 3, 224, 224) accepts (1, 3, 224, 224), (8, 3, 224, 224) and (16, 3, 224, 224).
    """
    for shape in (smallest, usual, largest):
        if len(shape) != len(tensor.shape):
            return False
    for fixed, a, b, c in zip(tensor.shape, smallest, usual, largest):
        if not 0 < a <= b <= c:
            return False
        # A fixed axis has one size, so the smallest must be the largest.
        if fixed != -1 and not fixed == a == c:
            return False
    return True


def _bad_profile(why: str) -> DeviceError:
    return DeviceError(
        "engine-profile",
        "TensorRT cannot build for the shapes that the bundle states",
        why=why,
        hint="set min, opt and max of every dynamic axis in the manifest, and build again",
    )


def _set_timing_cache(config: Config, timing_cache: bytes) -> None:
    # TensorRT refuses a cache of another GPU or version; an empty one always works.
    cache = config.create_timing_cache(timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


class _Heartbeat:
    """Calls `beat` from a thread while its block runs; raises its exception at the end."""

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
        except BaseException as error:  # noqa: BLE001  Nobody waits for a build with a closed pipe.
            self._raised.append(error)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], *rest: object) -> None:
        self._done.set()
        self._thread.join()
        if self._raised and kind is None:
            raise self._raised[0]
