"""OpenVINO as a second engine of a bundle for CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import bundle, device, engine
from edgepack.device import Emulated, Local, ready
from edgepack.errors import EdgepackError
from edgepack.runtime import load
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import (
    BF16,
    ONNXRUNTIME,
    OPENVINO,
    Settings,
    Variant,
    read_settings,
)
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.run import read_npz
from edgepack.runtime.device.machine import describe
from edgepack.runtime.errors import BundleError
from edgepack.runtime.model import Model
from edgepack.runtime.session.cpu import open_session
from edgepack.runtime.strict_json import Reader
from edgepack.runtime.tensor import Tensor
from edgepack.spec import target
from support.bundle_cases import entry_names, run_bundle
from support.linear import linear_contents, linear_onnx, measured

pytest.importorskip("openvino", reason="OpenVINO is not installed")
if describe()["arch"] != "x86_64":
    pytest.skip("OpenVINO is the engine of x86-64 alone", allow_module_level=True)

FEED = {"x": np.random.default_rng(3).normal(size=(2, 8)).astype(np.float32)}
INPUTS, OUTPUTS = [Tensor("x", "float32", ("batch", 8))], [Tensor("y", "float32", ("batch", 3))]
BOUND = {"snr_db": 40.0}


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that OpenVINO runs best, and that holds onnxruntime's answers."""
    folder = tmp_path_factory.mktemp("engines")
    path, answers = folder / "linear.edgepack", folder / "answers.npz"
    contents = linear_contents()
    first = engine.openvino.make_variant()._replace(fidelity=BOUND)
    contents = replace(contents, variants=[first, *contents.variants])
    bundle.write(path, contents)
    with Local() as host:
        options = ("--variant", ONNXRUNTIME)
        device.ask(host, str(path), "run", "--output", str(answers), *options)
    bundle.write(path, measured(replace(contents, built=[read_npz(str(answers))["y"]])))
    return path


def verify(path: Path, *options: str) -> dict[str, Any]:
    done = run_bundle(path, "verify", "--json", *options)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_first_engine_that_is_installed_runs_and_each_is_verified(two_engines: Path) -> None:
    verdict = verify(two_engines)
    assert (verdict["variant"]["engine"], verdict["verdict"]) == (OPENVINO, "PASS")
    bounds = [gate["bound"] for gate in verdict["fidelity"]["gates"]]
    assert bounds == [BOUND["snr_db"]]
    text = run_bundle(two_engines, "verify").stdout
    assert "OpenVINO 20" in text
    assert verify(two_engines, "--variant", ONNXRUNTIME)["verdict"] == "PASS"


def test_a_device_without_openvino_runs_onnxruntime_and_says_so(
    two_engines: Path, tmp_path: Path
) -> None:
    """Both engines were verified by the build, so that neither is a doubt."""
    (tmp_path / "openvino.py").write_text("raise ImportError('no OpenVINO here')\n")
    done = subprocess.run(
        [sys.executable, str(two_engines), "verify"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.endswith("verdict: PASS\n")
    assert "note: running onnxruntime" in done.stderr
    assert "OpenVINO cannot be imported on this device: no OpenVINO here" in done.stderr


def test_info_explains_each_variant(two_engines: Path) -> None:
    text = run_bundle(two_engines, "info").stdout
    assert "needs openvino >=20" in text
    assert "fidelity: SNR at least 40 dB" in text
    assert "runs here" in text


def test_only_bundles_with_the_variant_carry_its_session(
    two_engines: Path, linear_bundle: Path
) -> None:
    name = "runtime/session/openvino_session.py"
    assert name in entry_names(two_engines)
    assert name not in entry_names(linear_bundle)


def test_nothing_is_written_into_the_home_and_no_telemetry_runs(
    two_engines: Path, tmp_path: Path
) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = [{str(two_engines)!r}, 'verify']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as exit:\n"
        "    assert not exit.code, exit.code\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        check=True, capture_output=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [("batch", 8), (2, 8)])
def test_a_second_call_leaves_the_first_answers_alone(shape: tuple[int | str, ...]) -> None:
    """With fixed sizes OpenVINO plans for these alone."""
    model, weights = linear_onnx()
    inputs = [Tensor("x", "float32", shape)]
    session = open_session(OPENVINO, model.SerializeToString(), inputs, OUTPUTS)
    first = session.run(FEED)["y"]
    expected = first.copy()
    session.run({"x": 2 * FEED["x"]})
    assert np.array_equal(first, expected)
    assert np.allclose(first, FEED["x"] @ weights, atol=1e-5)


def test_arrays_that_are_not_contiguous_give_the_same_answers() -> None:
    model, _ = linear_onnx()
    session = open_session(OPENVINO, model.SerializeToString(), INPUTS, OUTPUTS)
    wide = np.zeros((2, 16), np.float32)
    wide[:, ::2] = FEED["x"]
    strided = wide[:, ::2]
    strided.flags.writeable = False
    assert np.array_equal(session.run({"x": strided})["y"], session.run(FEED)["y"])


def test_a_model_of_another_signature_is_refused() -> None:
    model, _ = linear_onnx()
    with pytest.raises(BundleError) as caught:
        open_session(
            OPENVINO, model.SerializeToString(), INPUTS, [Tensor("z", "float32", ("batch", 3))]
        )
    assert caught.value.code == "bundle-model"


def test_what_openvino_refuses_names_the_operator() -> None:
    with pytest.raises(EdgepackError) as caught:
        open_session(OPENVINO, b"not an ONNX", INPUTS, OUTPUTS)
    assert caught.value.code == "engine-refused"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"precision": "int3"}, "int3"),
        ({"threads": -1}, "-1"),
        ({"turbo": True}, "no setting 'turbo'"),
    ],
)
def test_unknown_settings_are_refused(entry: dict[str, object], why: str) -> None:
    def fault(path: str, text: str) -> BundleError:
        return BundleError("bundle-index", "not valid", why=f"{path}: {text}")

    with pytest.raises(BundleError) as caught:
        read_settings(Reader(entry, "settings", fault), OPENVINO)
    assert why in caught.value.why


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    variants = (
        Variant("a", OPENVINO, settings=Settings(BF16, 2), fidelity={"snr_db": 15, "agreement": 1}),
        Variant("b", ONNXRUNTIME, settings=Settings(threads=1, spinning=False)),
    )
    path = tmp_path / "x.edgepack"
    bundle.write(path, replace(linear_contents(), variants=variants))
    with Archive(str(path)) as archive:
        assert read_index(archive).variants == variants


def test_bfloat16_needs_a_processor_that_has_it() -> None:
    variant = engine.openvino.make_variant(Settings(precision=BF16))
    assert (variant.name, variant.needs["isa"]) == ("openvino-bf16", ["avx512_bf16"])
    alternatives = engine.list_alternatives(target.load("cpu-fbgemm"))
    assert alternatives[0].engine == OPENVINO
    has_it = "avx512_bf16" in (describe()["isa"] or ())
    assert (variant in alternatives) == has_it
    assert engine.list_alternatives(target.load("arm-qnnpack")) == ()


def test_requirements_leave_openvino_to_newer_pythons() -> None:
    profile = target.load("cpu-fbgemm")
    lines = engine.requirements(profile, [engine.openvino.make_variant()]).splitlines()
    assert lines[-1].startswith("openvino==")
    assert lines[-1].endswith("; python_version >= '3.10' and platform_machine == 'x86_64'")
    assert "openvino" not in engine.requirements(profile)


def test_a_loaded_model_answers_in_several_threads(two_engines: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model: Model = load(two_engines)
    feeds = [{"x": FEED["x"] * scale} for scale in range(1, 9)]
    expected = [model.run(feed)["y"] for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda feed: model.run(feed)["y"], feeds))
    for answer, value in zip(answers, expected, strict=True):
        assert np.array_equal(answer, value)


@pytest.mark.skipif(ready("Haswell") is not None, reason="no qemu-x86_64 on this host")
def test_an_emulated_cpu_without_avx512_runs_openvino(two_engines: Path) -> None:
    with Emulated("Haswell") as haswell:
        verdict = device.verify_bundle(haswell, str(two_engines), "--variant", OPENVINO)
    assert (verdict["verdict"], verdict["variant"]["engine"]) == ("PASS", OPENVINO)
