"""Hostile variants and sealed engines: refused before any engine is deserialised.

The engines are stand-ins (see gpu_standin), and so is what deserialises them: it leaves a mark
when it does. Files, hashes, owners and refusals are real.
"""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgepack import bundle
from edgepack.runtime.bundle.archive import INDEX
from edgepack.runtime.bundle.engines import EngineOptions
from edgepack.runtime.bundle.index import content_digest, parse
from edgepack.runtime.bundle.seal import find
from edgepack.runtime.errors import BundleError, DeviceError
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.strict_json import encode
from support.bundle_cases import entry
from support.gpu_standin import StandIn, tensorrt_contents
from support.linear import linear_onnx


@pytest.fixture
def document(tensorrt_bundle: Path) -> dict:
    with zipfile.ZipFile(tensorrt_bundle) as archive:
        found: dict = json.loads(archive.read(INDEX))
    return found


def tensorrt_of(document: dict, **changes: Any) -> None:
    document["variants"][0].update(changes)


def needs_of(document: dict, **changes: Any) -> None:
    document["variants"][0]["needs"].update(changes)


def profile_of(document: dict, **changes: Any) -> None:
    document["engine_options"]["profiles"]["x"].update(changes)


EXACT = {"gpu": "Orin", "compute_capability": "==8.7", "engine_version": "==10.3.0.30"}
WRONG: list[tuple[Callable[[dict], Any], str]] = [
    (lambda d: d.pop("variants"), "the key 'variants' is missing"),
    (lambda d: d.update(variants={}), "variants: it has the wrong type"),
    (lambda d: d.update(variants=[]), "it has 0 variants"),
    (lambda d: d.update(variants=d["variants"] * 9), "it has 18 variants"),
    (lambda d: d.update(variants=["tensorrt"]), "variants[0]: the key 'name' is missing"),
    (lambda d: d["variants"].append(d["variants"][1]), "two variants have the same name"),
    (
        lambda d: d["variants"].append({**d["variants"][0], "name": "another"}),
        "two variants build their engine on the device",
    ),
    (lambda d: tensorrt_of(d, name="../x"), "variants[0]: its name is '../x'"),
    (lambda d: tensorrt_of(d, name=""), "its name is ''"),
    (lambda d: tensorrt_of(d, engine=5), "variants[0].engine: it has the wrong type"),
    (lambda d: tensorrt_of(d, needs=[]), "variants[0].needs: it has the wrong type"),
    (lambda d: tensorrt_of(d, file=5), "variants[0].file: it has the wrong type"),
    (lambda d: d["variants"][0].pop("file"), "variants[0]: the key 'file' is missing"),
    (lambda d: tensorrt_of(d, file="engine/absent.plan", needs=EXACT), "its file is 'engine/abs"),
    (lambda d: tensorrt_of(d, file="model/model.onnx", needs=EXACT), "its file is 'model/model"),
    (lambda d: tensorrt_of(d, file="/etc/passwd", needs=EXACT), "its file is '/etc/passwd'"),
    (lambda d: d["variants"][1].update(file="model/model.onnx"), "variants[1]: its file is"),
    (lambda d: needs_of(d, isa="avx2"), "variants[0].needs.isa: it has the wrong type"),
    (lambda d: needs_of(d, isa=[5]), "variants[0].needs.isa[0]: it is not a string"),
    (lambda d: needs_of(d, arch=["x86_64"]), "variants[0].needs.arch: it has the wrong type"),
    (lambda d: needs_of(d, compute_capability=8.7), "compute_capability: it has the wrong type"),
    # What `satisfies` would read as "any".
    (lambda d: needs_of(d, compute_capability="~8.7"), "its compute_capability is '~8.7'"),
    (lambda d: needs_of(d, engine_version=""), "its engine_version is ''"),
    (lambda d: needs_of(d, engine_version=">=10,"), "its engine_version is '>=10,'"),
    (lambda d: needs_of(d, engine_version="10\n"), "its engine_version is '10\\n'"),
    (lambda d: needs_of(d, driver="535"), "it requires 'driver', which this loader cannot check"),
    (lambda d: d.pop("engine_options"), "the key 'engine_options' is missing"),
    (lambda d: d["engine_options"].update(workspace_mb=-1), "a number is below 0"),
    (lambda d: d["engine_options"].update(dla_core=True), "dla_core: it has the wrong type"),
    (lambda d: d["engine_options"].update(dla_core=-1), "a number is below 0"),
    (lambda d: d["engine_options"]["profiles"].update(z={}), "'z' is not an input"),
    (lambda d: profile_of(d, min=[1]), "its shapes do not fit x:float32:batch,8"),
    (lambda d: profile_of(d, opt=[1, 9]), "its shapes do not fit"),
    (lambda d: profile_of(d, min=[0, 8]), "its shapes do not fit"),
    (lambda d: profile_of(d, max=[0, 8]), "its shapes do not fit"),
    (lambda d: profile_of(d, opt=[5, 8]), "its shapes do not fit"),
    (lambda d: profile_of(d, min=[True, 8]), "min[0]: it is not a whole number"),
    (lambda d: profile_of(d, min="18"), "profiles.x.min: it has the wrong type"),
]


@pytest.mark.parametrize(("change", "why"), WRONG)
def test_an_index_that_is_wrong(change: Callable[[dict], Any], why: str, document: dict) -> None:
    change(document)
    document["content_digest"] = content_digest(document)
    with pytest.raises(BundleError) as caught:
        parse(encode(document))
    assert caught.value.code == "bundle-index"
    assert why in caught.value.why


def test_the_index_itself_is_accepted(document: dict) -> None:
    assert [variant.name for variant in parse(encode(document)).variants] == [
        "tensorrt",
        "onnxruntime",
    ]


def test_an_unknown_engine(document: dict) -> None:
    tensorrt_of(document, engine="../../bin/sh")
    document["content_digest"] = content_digest(document)
    with pytest.raises(BundleError) as caught:
        parse(encode(document))
    assert caught.value.code == "bundle-engine"
    assert "tensorrt" in caught.value.why


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {**EXACT, "engine_version": ">=10"},
        {**EXACT, "compute_capability": "8.7"},
        {**EXACT, "compute_capability": "==8.7,<9"},
        {key: value for key, value in EXACT.items() if key != "gpu"},
    ],
)
def test_a_built_engine_for_whatever_device(needs: dict, document: dict) -> None:
    document["files"]["engine/a.plan"] = {"sha256": "0" * 64, "bytes": 1}
    tensorrt_of(document, file="engine/a.plan", needs=needs)
    document["content_digest"] = content_digest(document)
    with pytest.raises(BundleError) as caught:
        parse(encode(document))
    assert "a built engine needs an exact" in caught.value.why


@pytest.fixture
def finished(gpu_standin: StandIn, tensorrt_bundle: Path) -> Path:
    """The sealed engine of a finished bundle."""
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    return tensorrt_bundle.with_name(tensorrt_bundle.name + ".engine")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    """The same archive with other contents, as zipfile writes it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(entry(name), data)


def key_with(**changes: Any) -> Callable[[Path], None]:
    def change(entries: dict[str, bytes]) -> None:
        key = json.loads(entries["key.json"])
        key["engine"].update(changes)
        entries["key.json"] = json.dumps(key).encode()

    return lambda path: rewritten(path, change)


def key_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda entries: entries.update({"key.json": data}))


def with_entry(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda entries: entries.update({name: data}))


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_socket(path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # The path of a socket may have 108 bytes.
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def owned_by_another(path: Path) -> None:
    os.chown(path, 12345, 12345)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"standin-engine") + 3] ^= 1
    path.write_bytes(data)


HOSTILE: list[tuple[Callable[[Path], Any], str, str]] = [
    (as_link, "engine-untrusted", "it is a symbolic link"),
    (as_pipe, "engine-untrusted", "it is not a regular file"),
    (as_folder, "engine-untrusted", "it is not a regular file"),
    (as_socket, "engine-seal", ""),
    (lambda path: path.chmod(0o664), "engine-untrusted", "users other than its owner may write it"),
    (lambda path: path.chmod(0o646), "engine-untrusted", "users other than its owner may write it"),
    (owned_by_another, "engine-untrusted", "it belongs to user 12345"),
    (lambda path: path.write_bytes(b""), "engine-seal", "it has only 0 bytes"),
    (lambda path: path.write_bytes(b"PK" * 50), "engine-seal", "end record"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "engine-seal", ""),
    (flipped, "engine-seal", "engine.plan: its hash is not the one that its key lists"),
    (with_entry("engine.plan", b"short"), "engine-seal", "their sizes are not those"),
    (with_entry("evil.so", b"code"), "engine-seal", "its entries are not those of an engine"),
    (with_entry("../evil", b"code"), "engine-seal", "an entry has the name"),
    (key_bytes(b"{}"), "engine-seal", "the key 'format' is missing"),
    (key_bytes(b"[" * 9999), "engine-seal", "nested"),
    (key_bytes(b'{"format": NaN}'), "engine-seal", "NaN"),
    (key_bytes(b'{"format": "edgepack-engine/2"}'), "engine-seal", "its format is"),
    (key_bytes(b" " * (1 << 17)), "engine-seal", "it is too large"),
    (key_with(gpu=5), "engine-seal", "engine.gpu: it has the wrong type"),
    (key_with(multiprocessors="16"), "engine-seal", "multiprocessors: it has the wrong type"),
    (key_with(board=False), "engine-seal", "board: it has the wrong type"),
    (key_with(gpu="Another"), "engine-other", "gpu: it was built for Another"),
    (key_with(tensorrt="10.3"), "engine-other", "tensorrt: it was built for 10.3; this is"),
    (key_with(variant="other"), "engine-other", "variant: it was built for other"),
    (key_with(bundle="0" * 64), "engine-other", "bundle: it was built for 000"),
]


@pytest.mark.parametrize(("harm", "code", "why"), HOSTILE)
def test_a_hostile_engine_is_never_deserialised(
    harm: Callable[[Path], Any],
    code: str,
    why: str,
    gpu_standin: StandIn,
    tensorrt_bundle: Path,
    finished: Path,
    tmp_path: Path,
) -> None:
    if harm is owned_by_another and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    harm(finished)
    mark = tmp_path / "mark"
    done = gpu_standin.run(tensorrt_bundle, "verify", "--json", STANDIN_MARK=str(mark))
    # The fallback answers right, which says nothing about the engine that was asked for.
    assert done.returncode == 1, done.stderr
    variant = json.loads(done.stdout)["variant"]
    assert variant["fallback"]
    (passed,) = variant["passed_over"]
    assert passed["code"] == code
    assert why in passed["why"]
    assert passed["hint"].startswith("python3 BUNDLE finish")
    assert not mark.exists()
    # Asked for by name there is nothing to fall back to.
    forced = gpu_standin.run(tensorrt_bundle, "verify", "--variant", "tensorrt", "--json")
    assert forced.returncode == 2
    assert json.loads(forced.stdout)["error"]["code"] == code
    # And `finish` puts a good one in its place, but for what only its owner may remove.
    again = gpu_standin.run(tensorrt_bundle, "finish", "--json")
    if harm is as_folder:
        assert json.loads(again.stdout)["error"]["code"] == "output-unwritable"
        return
    assert again.returncode == 0, again.stderr
    verdict = json.loads(gpu_standin.run(tensorrt_bundle, "verify", "--json").stdout)
    assert verdict["variant"]["sealed"]
    assert finished.is_file()
    assert not finished.is_symlink()


def test_an_altered_bundle_is_refused_before_its_engine(
    gpu_standin: StandIn, tensorrt_bundle: Path, finished: Path, tmp_path: Path
) -> None:
    data = bytearray(tensorrt_bundle.read_bytes())
    with zipfile.ZipFile(tensorrt_bundle) as archive:
        at = archive.getinfo("model/model.onnx").header_offset + 60
    data[at] ^= 1
    tensorrt_bundle.write_bytes(data)
    mark = tmp_path / "mark"
    for command in ("verify", "finish"):
        done = gpu_standin.run(tensorrt_bundle, command, "--json", STANDIN_MARK=str(mark))
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["code"] == "bundle-altered"
    assert not mark.exists()


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".engine.part")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path, victim: path.symlink_to(victim),
        lambda path, victim: path.hardlink_to(victim),
        lambda path, victim: os.mkfifo(path),
        lambda path, victim: path.mkdir(),
    ],
)
def test_what_stands_where_it_would_be_written(
    harm: Callable[[Path, Path], Any], gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path
) -> None:
    """The temporary name is known, so somebody may lay something there: nothing goes through it."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    harm(part_of(tensorrt_bundle), victim)
    done = gpu_standin.run(tensorrt_bundle, "finish", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "output-unwritable"
    assert ".engine.part" in error["why"]
    assert victim.read_text() == "precious"


REFUSED = [
    ({"STANDIN_GPU": ""}, "gpu-missing", "no CUDA-capable device is detected"),
    ({"STANDIN_CRASH": "cuInit"}, "gpu-missing", "SIGSEGV"),
    ({"STANDIN_CAPABILITY": "7.2"}, "gpu-other", "capability >=8.0; this is Stand-in Orin"),
    ({"PYTHONPATH": os.devnull}, "engine-missing", "No module named 'tensorrt'"),
    ({"STANDIN_TENSORRT": "8.5.2.2"}, "engine-version", "it needs >=10,<12; this is 8.5.2.2"),
    ({"STANDIN_RUNTIME": "crash"}, "engine-missing", "SIGSEGV"),
    ({"STANDIN_FAIL": "build"}, "engine-build", "it gave no reason"),
    ({"STANDIN_FAIL": "execute"}, "engine-failed", "a kernel could not be launched"),
    ({"STANDIN_FAIL": "cudaMalloc"}, "cuda-failed", "out of memory"),
    ({"STANDIN_FAIL": "cudaGetDeviceCount"}, "cuda-missing", "error 2: out of memory"),
]


@pytest.mark.parametrize(("variables", "code", "why"), REFUSED)
def test_a_device_that_cannot_finish(
    variables: dict[str, str], code: str, why: str, gpu_standin: StandIn, tensorrt_bundle: Path
) -> None:
    """One clear error, exit 2, and nothing beside the bundle."""
    done = gpu_standin.run(tensorrt_bundle, "finish", "--json", **variables)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert why in error["why"]
    assert "Traceback" not in done.stderr
    assert list(tensorrt_bundle.parent.iterdir()) == [tensorrt_bundle]


def test_profiles_that_are_missing(gpu_standin: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "x.edgepack"
    bundle.write(path, replace(tensorrt_contents(), engine_options=EngineOptions()))
    done = gpu_standin.run(path, "finish", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "engine-profile"


def test_a_variant_that_is_not_there(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    for command in (
        ["verify"],
        ["run", "--output", "o.npz"],
        ["bench", "--length", "smoke"],
    ):
        done = gpu_standin.run(tensorrt_bundle, *command, "--variant", "cuda", "--json")
        assert done.returncode == 2
        error = json.loads(done.stdout)["error"]
        assert (error["code"], error["why"]) == ("variant-unknown", "it has tensorrt, onnxruntime")


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not:UserWarning")
def test_onnxruntime_that_would_go_on_without_the_gpu() -> None:
    """The real one, which has no CUDA here: asked for it, it makes a session on the CPU."""
    model = linear_onnx()[0].SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" in session.get_providers():
        pytest.skip("this machine runs CUDA")
    with pytest.raises(DeviceError) as caught:
        OnnxSession(model, cuda=True)
    assert caught.value.code == "engine-provider"
    assert "it would run in CPUExecutionProvider" in caught.value.why


def test_a_place_that_cannot_be_looked_at(tmp_path: Path) -> None:
    assert find(str(tmp_path / "absent.edgepack")) is None
    (tmp_path / "x.edgepack.engine").symlink_to("dangling")
    with pytest.raises(DeviceError) as caught:
        find(str(tmp_path / "x.edgepack"))
    assert caught.value.code == "engine-untrusted"
