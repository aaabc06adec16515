"""Which variant is taken, and the reason for each that was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import bundle
from edgepack.proof.job import list_variants
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import EngineOptions, Variant
from edgepack.runtime.bundle.index import Index, read_index
from edgepack.runtime.bundle.seal import Key, Sealed
from edgepack.runtime.device.variants import Choice, choose, choose_stand_in, format_fallback
from edgepack.runtime.errors import DeviceError, InputError
from edgepack.spec import target
from support.gpu_standin import tensorrt_contents
from support.linear import linear_contents

ONNX = Variant("onnxruntime", "onnxruntime", {"engine_version": "1.19"})
CUDA = Variant(
    "onnxruntime-cuda",
    "onnxruntime-cuda",
    {"compute_capability": ">=7.0", "engine_version": ">=1.20"},
)
TENSORRT = Variant(
    "tensorrt", "tensorrt", {"compute_capability": "==8.7", "engine_version": "==10.3"}
)

CPU: dict[str, Any] = {
    "arch": "x86_64",
    "cpu": "A CPU",
    "isa": ["avx2", "fma"],
    "python": "3.11.7",
    "onnxruntime": "1.31.1",
    "onnxruntime_providers": "AzureExecutionProvider, CPUExecutionProvider",
    "gpu": None,
    "gpu_why": "the driver is not installed",
    "tensorrt": None,
    "tensorrt_why": "no GPU",
}
ORIN: dict[str, Any] = {
    **CPU,
    "gpu": "Orin",
    "gpu_why": "",
    "compute_capability": "8.7",
    "multiprocessors": 16,
    "board": "Jetson AGX Orin",
    "tensorrt": "10.3.0.30",
    "tensorrt_why": "",
    "onnxruntime_providers": "CUDAExecutionProvider, CPUExecutionProvider",
}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Of a bundle for TensorRT that may fall back."""
    return index_with(tmp_path, TENSORRT, ONNX)


def index_with(folder: Path, *found: Variant, isa: tuple[str, ...] = ("avx2",)) -> Index:
    contents = replace(
        linear_contents(),
        variants=found,
        device={"arch": "x86_64", "isa": list(isa), "python": "3.8"},
        engines={"a.plan": b"an engine"},
    )
    bundle.write(folder / "x.edgepack", contents)
    with Archive(str(folder / "x.edgepack")) as archive:
        return read_index(archive)


def sealed_for(index: Index, **changes: Any) -> Sealed:
    return Sealed("x.engine", Key.of(index, TENSORRT, {**ORIN, **changes}), {})


def codes(choice: Choice) -> dict[str, str]:
    return {passed.variant.name: passed.fault.code for passed in choice.passed_over}


def test_the_index_gives_back_what_was_written(tmp_path: Path) -> None:
    contents = tensorrt_contents()
    path = tmp_path / "x.edgepack"
    options = EngineOptions(512, 1, contents.engine_options.profiles)
    bundle.write(path, replace(contents, engine_options=options))
    with Archive(str(path)) as archive:
        index = read_index(archive)
    assert list(index.variants) == contents.variants
    assert index.engine_options == options


def test_a_cpu_bundle_has_one_and_it_is_taken(tmp_path: Path) -> None:
    choice = choose(index_with(tmp_path, ONNX), CPU)
    assert choice.require_variant() == ONNX
    assert (choice.fallback, choice.passed_over) == (False, ())
    assert format_fallback(choice.to_json()) == []


def test_a_sealed_engine_comes_before_all(tmp_path: Path) -> None:
    index = index_with(tmp_path, CUDA, TENSORRT, ONNX)
    choice = choose(index, ORIN, sealed_for(index))
    assert choice.require_variant() == TENSORRT
    assert choice.sealed is not None
    assert choice.passed_over == ()
    # Without it the order of the index holds.
    assert choose(index, ORIN).require_variant() == CUDA


def test_an_engine_that_is_not_finished(index: Index) -> None:
    choice = choose(index, ORIN)
    assert choice.require_variant() == ONNX
    assert choice.fallback
    assert codes(choice) == {"tensorrt": "engine-unfinished"}
    said = format_fallback(choice.to_json())
    assert said[0].startswith("FALLBACK: running in onnxruntime")
    assert "python3 BUNDLE finish" in said[1]
    json.dumps(choice.to_json(), allow_nan=False)


def test_unfinished_and_nothing_to_fall_back_to(tmp_path: Path) -> None:
    choice = choose(index_with(tmp_path, TENSORRT), ORIN)
    assert choice.variant is None
    with pytest.raises(DeviceError) as caught:
        choice.require_variant()
    assert caught.value.code == "engine-unfinished"
    assert caught.value.hint == "python3 BUNDLE finish"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gpu": "Orin (nvgpu)"}, "gpu"),
        ({"compute_capability": "7.2"}, "compute_capability"),
        ({"multiprocessors": 8}, "multiprocessors"),
        ({"board": "Jetson Orin Nano"}, "board"),
        ({"tensorrt": "10.3.0.26"}, "tensorrt"),
    ],
)
def test_an_engine_sealed_elsewhere(index: Index, changes: dict[str, Any], named: str) -> None:
    choice = choose(index, ORIN, sealed_for(index, **changes))
    assert choice.require_variant() == ONNX
    assert codes(choice) == {"tensorrt": "engine-other"}
    fault = choice.passed_over[0].fault
    assert fault.why.startswith(
        f"{named}: it was built for {changes[named]}; this is {ORIN[named]}"
    )
    assert fault.hint == "python3 BUNDLE finish"


def test_an_engine_sealed_for_another_bundle(index: Index) -> None:
    sealed = sealed_for(replace(index, content_digest="0" * 64))
    fault = choose(index, ORIN, sealed).passed_over[0].fault
    assert "another bundle" in fault.what


def test_an_engine_that_is_not_to_be_trusted(index: Index) -> None:
    refused = DeviceError("engine-untrusted", "not to be trusted", why="a link")
    assert codes(choose(index, ORIN, refused)) == {"tensorrt": "engine-untrusted"}


@pytest.mark.parametrize(
    ("variant", "changes", "code", "why"),
    [
        (TENSORRT, {"gpu": None, "gpu_why": "no driver"}, "gpu-missing", "no driver"),
        (TENSORRT, {"compute_capability": "8.6"}, "gpu-other", "capability ==8.7; this is Orin"),
        (TENSORRT, {"tensorrt": None, "tensorrt_why": "No module"}, "engine-missing", "No module"),
        (TENSORRT, {"tensorrt": "8.5.2.2"}, "engine-version", "==10.3; this is 8.5.2.2"),
        (CUDA, {"gpu": None}, "gpu-missing", ""),
        (CUDA, {"onnxruntime": None, "onnxruntime_why": "none"}, "engine-missing", "none"),
        (CUDA, {"onnxruntime": "1.19.2"}, "engine-version", "this is 1.19.2"),
        (
            CUDA,
            {"onnxruntime_providers": "CPUExecutionProvider"},
            "engine-provider",
            "CUDAExecutionProvider is not in get_available_providers(): CPUExecutionProvider",
        ),
        (
            ONNX._replace(needs={"arch": "aarch64"}),
            {},
            "device-arch",
            "it is for aarch64; this is x86_64",
        ),
        (ONNX._replace(needs={"isa": ["avx512_vnni"]}), {}, "device-isa", "it lacks avx512_vnni"),
        (ONNX._replace(needs={"isa": ["fma"]}), {"isa": None}, "device-isa", "the safest"),
    ],
)
def test_each_reason(
    variant: Variant, changes: dict[str, Any], code: str, why: str, tmp_path: Path
) -> None:
    last = Variant("last", "onnxruntime")
    device = {**ORIN, **changes}
    choice = choose(index_with(tmp_path, variant, last), device)
    (passed,) = choice.passed_over[:1]
    assert passed.fault.code == code
    assert why in passed.fault.why
    assert passed.fault.hint
    # Another engine than the first is a fallback, another variant of it is not; and none may fit.
    title = "".join(format_fallback(choice.to_json())[:1])
    if choice.variant is not None:
        assert title.startswith("FALLBACK" if variant.engine != "onnxruntime" else "note: ")


def test_where_the_system_does_not_tell_the_floor_is_taken(tmp_path: Path) -> None:
    """A variant that needs no more than the floor of the bundle fits all the same."""
    faster = Variant("vnni", "onnxruntime", {"isa": ["avx2", "avx512_vnni"]})
    floor = Variant("floor", "onnxruntime", {"isa": ["avx2"]})
    index = index_with(tmp_path, faster, floor)
    choice = choose(index, {**CPU, "isa": None})
    assert choice.require_variant() == floor
    assert "does not report" in choice.passed_over[0].fault.what
    assert choose(index, {**CPU, "isa": ["avx2", "avx512_vnni"]}).require_variant() == faster
    # Both run in the engine that the bundle was made for.
    assert not choice.fallback


def test_where_none_fits_every_reason_is_told(index: Index) -> None:
    choice = choose(index, {**CPU, "onnxruntime": None, "onnxruntime_why": "No module"})
    with pytest.raises(DeviceError) as caught:
        choice.require_variant()
    assert caught.value.code == "variant-none-fits"
    told = caught.value.why.splitlines()
    assert [line.partition(":")[0] for line in told] == ["tensorrt", "onnxruntime"]
    assert "the driver is not installed" in told[0]
    assert "No module" in told[1]


def test_one_by_name(index: Index) -> None:
    choice = choose(index, ORIN, sealed_for(index), only="onnxruntime")
    assert choice.require_variant() == ONNX
    assert choice.fallback
    with pytest.raises(DeviceError) as caught:
        choose(index, CPU, only="tensorrt").require_variant()
    assert caught.value.code == "gpu-missing"
    with pytest.raises(InputError) as unknown:
        choose(index, ORIN, only="cuda")
    assert unknown.value.code == "variant-unknown"
    assert unknown.value.why == "it has tensorrt, onnxruntime"


def test_one_that_did_not_start_is_passed_over(tmp_path: Path) -> None:
    index = index_with(tmp_path, CUDA, ONNX)
    refused = {"onnxruntime-cuda": DeviceError("engine-provider", "did not start", why="no cuDNN")}
    choice = choose(index, ORIN, refused=refused)
    assert choice.require_variant() == ONNX
    assert codes(choice) == {"onnxruntime-cuda": "engine-provider"}


def test_a_built_engine_in_the_bundle(tmp_path: Path) -> None:
    exact = {"gpu": "Orin", "compute_capability": "==8.7", "engine_version": "==10.3.0.30"}
    shipped = Variant("shipped", "tensorrt", exact, "engine/a.plan")
    index = index_with(tmp_path, shipped, TENSORRT, ONNX)
    assert choose(index, ORIN).require_variant() == shipped
    for changes, code in (
        ({"gpu": "Thor"}, "gpu-other"),
        ({"tensorrt": "10.3.0.31"}, "engine-version"),
    ):
        assert codes(choose(index, {**ORIN, **changes}))["shipped"] == code


def test_nothing_is_looked_at_that_is_not_asked_for(tmp_path: Path) -> None:
    """The description of a device may be lazy: what a choice does not need it does not touch."""

    class Watched(dict[str, Any]):
        asked: set[str] = set()

        def __getitem__(self, key: str) -> Any:
            self.asked.add(key)
            return super().__getitem__(key)

    on_cpu = Watched(CPU)
    choose(index_with(tmp_path, ONNX), on_cpu)
    assert not [key for key in on_cpu.asked if key.startswith(("gpu", "tensorrt", "compute"))]
    index, on_gpu = index_with(tmp_path, TENSORRT, ONNX), Watched(ORIN)
    on_gpu.asked = set()
    assert choose(index, on_gpu, sealed_for(index)).require_variant() == TENSORRT
    assert not [key for key in on_gpu.asked if key.startswith("onnxruntime")]


def test_the_build_host_stands_in(tmp_path: Path) -> None:
    """It runs the ONNX on the CPU, whether or not the device may."""
    for found, name in (((TENSORRT, ONNX), "onnxruntime"), ((TENSORRT,), "stand-in")):
        choice = choose_stand_in(index_with(tmp_path, *found), CPU)
        assert (choice.require_variant().name, choice.require_variant().engine) == (
            name,
            "onnxruntime",
        )
    nothing = choose_stand_in(
        index_with(tmp_path, ONNX), {**CPU, "onnxruntime": None, "onnxruntime_why": "No module"}
    )
    with pytest.raises(DeviceError, match="onnxruntime cannot be imported"):
        nothing.require_variant()


def test_variants_of_a_profile(tmp_path: Path) -> None:
    (only,) = list_variants(target.load("cpu-fbgemm"))
    assert only == Variant("onnxruntime", "onnxruntime", {"engine_version": "1.19"})
    profile = tmp_path / "mine.toml"
    profile.write_text(
        'schema = 1\nextends = "cpu-fbgemm"\n'
        '[device]\narch = "x86_64"\ncompute_capability = ">=8.0"\n'
        '[engine]\nname = "tensorrt"\nversion = ">=10,<12"\nfallback = "onnxruntime"\n'
    )
    found = list_variants(target.load(str(profile)))
    assert [variant.name for variant in found] == ["tensorrt", "onnxruntime"]
    assert found[0].needs == {"compute_capability": ">=8.0", "engine_version": ">=10,<12"}
    assert found[1].needs == {"engine_version": "1.19"}
