"""The builder of TensorRT engines: run for real with TensorRT-RTX, and what RTX does not have
(other versions' flags, accelerators) against recording stand-ins, which are named so."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.runtime.errors import DeviceError
from edgepack.runtime.session import tensorrt_build
from edgepack.runtime.session.tensorrt_build import Options, build
from support.quantize_nets import Arrays, Net, Steps, images
from support.rtx_cases import needs_rtx

SHAPES = ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))


def network(batch: int | str = "n", kernel: int = 3) -> onnx.ModelProto:
    net = Net()
    made = net.op("Relu", net.conv("x", 3, 8, kernel))
    return net.model({"x": [batch, 3, 16, 16]}, [made])


def rtx() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


def build_rtx(
    model: onnx.ModelProto | bytes, cache: bytes = b"", **options: Any
) -> tuple[bytes, bytes]:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    chosen = Options(**{"compute_capability": "8.9", **options})
    return build(rtx(), data, chosen, cache, lambda seconds: None)


def refused(model: onnx.ModelProto | bytes, **options: Any) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        build_rtx(model, **options)
    return caught.value


@needs_rtx
@pytest.mark.parametrize("capability", ["8.6", "8.9"])
def test_an_engine_is_built_without_a_gpu(capability: str) -> None:
    fixed, cache = build_rtx(network(1), compute_capability=capability, workspace_bytes=1 << 26)
    dynamic, _ = build_rtx(network(), compute_capability=capability, profiles={"x": SHAPES})
    assert len(fixed) > 10_000
    assert len(dynamic) > len(fixed)
    assert cache


@needs_rtx
def test_a_timing_cache_is_handed_on_and_a_foreign_one_is_left() -> None:
    engine, cache = build_rtx(network(1))
    again, second = build_rtx(network(1), cache)
    assert len(again) == len(engine)
    assert second
    built, fresh = build_rtx(network(1), b"what another device left behind")
    assert len(built) == len(engine)
    assert fresh


@needs_rtx
def test_the_heart_beats_while_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "BEAT_SECONDS", 0.002)
    beats: list[float] = []
    data = network(1).SerializeToString()
    build(rtx(), data, Options(compute_capability="8.9"), b"", beats.append)
    # The build lets other threads run, takes tens of milliseconds, and nothing beats after it.
    count = len(beats)
    assert count > 3
    assert beats == sorted(beats)
    time.sleep(0.02)
    assert len(beats) == count


@needs_rtx
def test_what_a_beat_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "BEAT_SECONDS", 0.001)

    def broken(seconds: float) -> None:
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError, match="nobody listens"):
        build(rtx(), network(1).SerializeToString(), Options(compute_capability="8.9"), b"", broken)


@needs_rtx
def test_a_parser_error_names_the_node_and_its_operator() -> None:
    model = network(1)
    model.graph.node[1].op_type = "Wobble"
    error = refused(model)
    assert error.code == "engine-parse"
    assert f"{model.graph.node[1].name} (Wobble)" in error.why


@needs_rtx
def test_the_scheme_of_cpus_is_refused_with_the_node() -> None:
    made = quantize(network(1), Arrays(x=images(8)), QuantizeOptions(batch_size=1), Steps())
    error = refused(made.model)
    assert error.code == "engine-parse"
    assert "x_QuantizeLinear (QuantizeLinear)" in error.why


@needs_rtx
@pytest.mark.parametrize("junk", [b"", b"no ONNX at all", b"\x00" * 64])
def test_what_is_no_onnx_is_refused(junk: bytes) -> None:
    assert refused(junk).code in ("engine-parse", "engine-build")


@needs_rtx
@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ({}, "there are no shapes for x"),
        ({"x": (SHAPES[1], SHAPES[0], SHAPES[2])}, "its shapes are"),
        ({"x": ((0, 3, 16, 16), SHAPES[1], SHAPES[2])}, "its shapes are"),
        ({"x": ((1, 3, 16), (2, 3, 16), (4, 3, 16))}, "its shapes are"),
        ({"x": ((1, 4, 16, 16), (2, 4, 16, 16), (4, 4, 16, 16))}, "its shapes are"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(profiles: Any, told: str) -> None:
    error = refused(network(), profiles=profiles)
    assert error.code == "engine-profile"
    assert told in error.why


@needs_rtx
def test_an_input_that_decides_shapes_by_its_value_is_refused() -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"], "reshape")]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]),
            helper.make_tensor_value_info("to", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    error = refused(model)
    assert error.code == "engine-profile"
    assert "the values of to" in error.why


@needs_rtx
def test_an_unknown_gpu_and_a_missing_accelerator_are_refused() -> None:
    assert refused(network(1), compute_capability="9.9").code == "engine-unusable"
    error = refused(network(1), dla_core=0)
    assert error.code == "engine-dla"
    assert "supports 0 of them" in error.why


# From here on stand-ins that record: of TensorRT 8.5, 10 and 11 there is none without a GPU.


class Recorded:
    """A stand-in for a TensorRT module: records what is asked of it, and computes nothing."""

    __name__ = "tensorrt_stand_in"

    def __init__(self, version: str, flags: dict[str, int], *, quantized: bool = False) -> None:
        self.__version__ = version
        self.__name__ = f"tensorrt_stand_in_{version}"
        self.calls: list[tuple[str, Any]] = []
        self.cores, self.engine, self.accepts_cache = 0, b"engine", True
        self.usable, self.parses = True, True
        record = self.calls.append

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

            def __init__(self) -> None:
                pass

        self.ILogger = ILogger
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.BuilderFlag = SimpleNamespace(FP16="FP16", INT8="INT8", GPU_FALLBACK="GPU_FALLBACK")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.DeviceType = SimpleNamespace(DLA="DLA", GPU="GPU")
        self.LayerType = SimpleNamespace(DEQUANTIZE="dq", CONVOLUTION="conv")
        kinds = ["conv", "dq"] if quantized else ["conv"]
        standin = self

        class Network:
            num_inputs, num_layers = 1, len(kinds)

            def get_input(self, index: int) -> Any:
                return SimpleNamespace(name="x", shape=(1, 3), is_shape_tensor=False)

            def get_layer(self, index: int) -> Any:
                return SimpleNamespace(type=kinds[index])

        class Config:
            default_device_type, DLA_core = "GPU", -1

            def set_flag(self, flag: str) -> None:
                record(("flag", flag))

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                record(("pool", (pool, size)))

            def create_timing_cache(self, data: bytes) -> Any:
                record(("cache", data))
                return SimpleNamespace(serialize=lambda: b"new cache")

            def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
                record(("mismatch", ignore_mismatch))
                return standin.accepts_cache

            def get_timing_cache(self) -> Any:
                return SimpleNamespace(serialize=lambda: b"new cache")

        self.config = Config()

        class Builder:
            num_DLA_cores = property(lambda self: standin.cores)

            def __init__(self, log: Any) -> None:
                self.log = log
                if not standin.usable:
                    log.log(1, "CUDA initialization failure with error: 35")
                    raise TypeError("factory function returned nullptr")

            def create_network(self, flags: int) -> Any:
                record(("network", flags))
                return Network()

            def create_builder_config(self) -> Any:
                return standin.config

            def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
                if standin.engine is None:
                    self.log.log(2, "a warning")
                    self.log.log(1, "Could not find any implementation for node conv_3")
                return standin.engine

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Any, log: Any) -> None:
                pass

            def parse(self, model: bytes) -> bool:
                return standin.parses

            def get_error(self, index: int) -> Any:
                # 8.5 tells the node's number alone.
                return SimpleNamespace(desc=lambda: "Unsupported", node=lambda: 7)

        self.Builder, self.OnnxParser = Builder, OnnxParser

    def asked(self, what: str) -> list[Any]:
        return [value for kind, value in self.calls if kind == what]


TYPED = {"8.5.2": None, "10.3.0": 1, "11.1.0": 0}


def recorded(version: str, **options: Any) -> Recorded:
    typed = TYPED[version]
    flags = {"EXPLICIT_BATCH": 0} if typed is None else {"STRONGLY_TYPED": typed}
    return Recorded(version, flags, **options)


def run(trt: Recorded, cache: bytes = b"", **options: Any) -> tuple[bytes, bytes]:
    return build(trt, b"onnx", Options(**options), cache, lambda seconds: None)


def test_the_typed_flag_is_1_in_10_and_0_in_11() -> None:
    for version, bits in (("10.3.0", 0b10), ("11.1.0", 0b1)):
        trt = recorded(version, quantized=True)
        assert run(trt) == (b"engine", b"new cache")
        assert trt.asked("network") == [bits]
        # All precision stands in the ONNX.
        assert trt.asked("flag") == []


def test_8_5_gets_its_batch_axis_told_and_flags_for_precision() -> None:
    trt = recorded("8.5.2", quantized=True)
    run(trt, workspace_bytes=1 << 20)
    assert trt.asked("network") == [0b1]
    assert trt.asked("flag") == ["FP16", "INT8"]
    assert trt.asked("pool") == [("workspace", 1 << 20)]


def test_8_5_is_not_asked_for_int8_where_nothing_is_quantized() -> None:
    trt = recorded("8.5.2")
    run(trt)
    assert trt.asked("flag") == ["FP16"]
    assert trt.asked("pool") == []


def test_8_5_tells_the_number_of_a_node_and_no_name() -> None:
    trt = recorded("8.5.2")
    trt.parses = False
    with pytest.raises(DeviceError) as caught:
        run(trt)
    assert caught.value.code == "engine-parse"
    assert caught.value.why == "node 7: Unsupported"


def test_an_accelerator_takes_what_it_can_and_the_gpu_the_rest() -> None:
    trt = recorded("10.3.0")
    trt.cores = 2
    run(trt, dla_core=1)
    assert (trt.config.default_device_type, trt.config.DLA_core) == ("DLA", 1)
    assert trt.asked("flag") == ["GPU_FALLBACK"]
    with pytest.raises(DeviceError) as caught:
        run(trt, dla_core=2)
    assert caught.value.code == "engine-dla"


def test_a_timing_cache_that_does_not_fit_gives_way_to_an_empty_one() -> None:
    trt = recorded("10.3.0")
    trt.accepts_cache = False
    run(trt, b"of another GPU")
    assert trt.asked("cache") == [b"of another GPU", b""]
    # Never forced on a GPU that it was not measured on.
    assert trt.asked("mismatch") == [False, False]


def test_a_build_that_fails_tells_what_tensorrt_said() -> None:
    trt = recorded("10.3.0")
    trt.engine = None
    with pytest.raises(DeviceError) as caught:
        run(trt)
    assert caught.value.code == "engine-build"
    assert caught.value.why == "Could not find any implementation for node conv_3"


def test_a_tensorrt_that_cannot_start_tells_why() -> None:
    trt = recorded("10.3.0")
    trt.usable = False
    with pytest.raises(DeviceError) as caught:
        run(trt)
    assert caught.value.code == "engine-unusable"
    assert "error: 35" in caught.value.why


def test_only_rtx_builds_for_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError) as caught:
        run(recorded("10.3.0"), compute_capability="8.9")
    assert caught.value.code == "engine-unusable"
    assert "only for the GPU of its machine" in caught.value.why


def test_the_answers_are_bytes() -> None:
    trt = recorded("11.1.0")
    trt.engine = np.frombuffer(b"plan", dtype=np.uint8)  # anything with a buffer, as IHostMemory
    assert run(trt)[0] == b"plan"
