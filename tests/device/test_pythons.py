"""The shipped loader on every Python that it supports, each with the onnxruntime that it has."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from edgepack import bundle
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.commands.bench import LENGTHS
from edgepack.runtime.preprocess import audio, code, picture, text
from support.bundle_cases import run_bundle
from support.gpu_standin import StandIn
from support.int8_nets import EVALUATION, build, mixed_onnx, pictures
from support.interpreters import OFFLINE, equipped, find
from support.linear import linear_contents, measured
from support.serving import infer_request, serve

VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
TOO_OLD = ("2.7", "3.6", "3.7")


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real int8 network, built by the command line."""
    return build(tmp_path_factory.getbasetemp(), mixed_onnx)


@pytest.fixture(scope="module")
def requirements(int8_bundle: Path) -> str:
    """What the bundle says that the device needs."""
    done = run_bundle(int8_bundle, "info", "--requirements")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """One Python version after the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def python(version: str, requirements: str) -> str:
    """That Python, with the bundle's requirements and nothing else."""
    return str(equipped(version, requirements))


@pytest.fixture
def missed(linear_bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle whose answers are not those that the build host gave."""
    contents = linear_contents()
    path = tmp_path / "missed.edgepack"
    bundle.write(path, measured(replace(contents, built=[1.5 * contents.original[0]])))
    return path


@pytest.fixture
def altered(linear_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with one byte of its model changed."""
    path, data = tmp_path / "altered.edgepack", bytearray(linear_bundle.read_bytes())
    with Archive(str(linear_bundle)) as archive:
        entry = archive.entries["model/model.onnx"]
    data[entry.start + entry.size // 2] ^= 1
    path.write_bytes(data)
    return path


def array_of(path: Path, name: str) -> np.ndarray:
    """One array that a bundle carries."""
    with Archive(str(path)) as archive:
        found: np.ndarray = np.load(io.BytesIO(archive.read(name)))
    return found


def test_verify_gives_the_same_bits(int8_bundle: Path, python: str, version: str) -> None:
    """An int8 network answers to the bit as on the build host, whatever the onnxruntime."""
    done = run_bundle(int8_bundle, "verify", "--json", python=python)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["passed"]
    assert verdict["device"]["python"].startswith(version + ".")
    assert {gate["name"] for gate in verdict["fidelity"]["gates"]} == {"bit_exact"}
    assert verdict["fidelity"]["outputs"]["scores"]["bit_exact"]
    assert verdict["fidelity"]["samples"] == EVALUATION
    assert verdict["hidden"] == ["torch", "edgepack"]


def test_it_has_the_pinned_versions(
    int8_bundle: Path, requirements: str, python: str, version: str
) -> None:
    pinned = {}
    for line in requirements.splitlines():
        wanted = Requirement(line)
        assert wanted.marker is not None
        if wanted.marker.evaluate({"python_version": version}):
            assert wanted.name not in pinned, "two pins hold for one Python"
            pinned[wanted.name] = str(wanted.specifier).removeprefix("==")
    done = run_bundle(int8_bundle, "info", python=python)
    assert done.returncode == 0
    assert set(pinned) == {"numpy", "onnxruntime"}
    for name, found in pinned.items():
        assert f"  {name:<12} {found}\n" in done.stdout


def test_verify_a_float_network(linear_bundle: Path, python: str) -> None:
    done = run_bundle(linear_bundle, "verify", python=python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("verdict: PASS\n")
    assert done.stderr == ""


def test_run(int8_bundle: Path, python: str, tmp_path: Path) -> None:
    """The reference samples and a file of one's own, one array per input."""
    output = tmp_path / "out.npz"
    done = run_bundle(int8_bundle, "run", "--output", str(output), python=python)
    assert done.returncode == 0, done.stderr
    built = array_of(int8_bundle, "reference/built-0.npy")
    np.testing.assert_array_equal(np.load(output)["scores"], built)

    source = tmp_path / "in.npz"
    np.savez(source, image=array_of(int8_bundle, "reference/input-0.npy")[:3, 0])
    done = run_bundle(
        int8_bundle, "run", "--input", str(source), "--output", str(output), python=python
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(output)["scores"], built[:3, 0])


def test_info(int8_bundle: Path, requirements: str, python: str) -> None:
    done = run_bundle(int8_bundle, "info", "--json", python=python)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["target"] == "cpu-fbgemm"
    assert document["inputs"][0]["name"] == "image"
    assert run_bundle(int8_bundle, "info", "--requirements", python=python).stdout == requirements


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]], indirect=True)
def test_every_command_of_a_bundle_for_cpus(
    linear_bundle: Path, python: str, tmp_path: Path
) -> None:
    """It carries only the parts of the loader that it needs, so none may look for another."""
    for command, result in (
        (["verify"], "verdict: PASS"),
        (["verify", "--json"], '"passed": true'),
        (["run", "--output", str(tmp_path / "out.npz")], "written: "),
        (["info"], "runs here"),
        (["info", "--json"], '"variant"'),
        (["info", "--requirements"], "onnxruntime"),
        (["device"], "onnxruntime "),
        (["marked", "--repeats", "1", "--json"], '"inferences": 1'),
        (["bench-turn", "--queries", "1", "--seconds", "0"], '"load_seconds"'),
        (["--help"], "verify"),
    ):
        done = run_bundle(linear_bundle, *command, python=python)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert result in done.stdout
    with serve(linear_bundle, python=python) as served:
        request = infer_request(np.ones((1, 8), np.float32))
        answer = served.json("/v2/models/linear/infer", request)
        assert answer["outputs"][0]["shape"] == [1, 3]
        assert b"</html>" in served.ask("/")[1]
        assert served.stop() == 0
    for command, expected in (
        (["finish"], "nothing-to-finish"),
        (["finish", "--force"], "nothing-to-finish"),
        (["setup", str(tmp_path / "env")], "bundle-without-wheels"),
        (["verify", "--variant", "cuda"], "variant-unknown"),
        (["verify", "--evaluation"], "evaluation-cut"),
    ):
        done = run_bundle(linear_bundle, *command, python=python)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert done.stderr.startswith(f"error[{expected}]: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz"]


LOAD_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from runtime import Model, load
from runtime.errors import InputError

model = load()
assert isinstance(model, Model), model
assert [str(t) for t in model.inputs] == ["image:float32:batch,3,12,12"], model.inputs
image = np.load(sys.argv[2])
outputs = model(image=image)
assert list(outputs) == ["scores"], outputs
try:
    model(picture=image)
except InputError as error:
    assert error.code == "input-names", error.code
else:
    raise SystemExit("a wrong input was taken")
np.testing.assert_array_equal(outputs["scores"], load(sys.argv[1])(image=image)["scores"])
np.save(sys.argv[3], outputs["scores"])
"""


def test_load_from_the_bundle_alone(int8_bundle: Path, python: str, tmp_path: Path) -> None:
    """`from runtime import load` out of the file, with nothing of edgepack installed."""
    given, taken = tmp_path / "image.npy", tmp_path / "scores.npy"
    np.save(given, pictures(2, seed=9))
    done = subprocess.run(
        [python, "-c", LOAD_ALONE, str(int8_bundle), str(given), str(taken)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    from edgepack import load

    here = load(int8_bundle)(image=np.load(given))["scores"]
    np.testing.assert_array_equal(np.load(taken), here)


def test_exit_1_where_a_gate_is_missed(missed: Path, python: str) -> None:
    done = run_bundle(missed, "verify", "--json", python=python)
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert (verdict["quality"]["passed"], verdict["fidelity"]["passed"]) == (True, False)
    assert done.stderr == ""
    assert run_bundle(missed, "verify", python=python).stdout.endswith("verdict: FAIL\n")


def test_exit_2_where_it_cannot_run(altered: Path, python: str) -> None:
    done = run_bundle(altered, "verify", "--json", python=python)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bundle-altered"
    assert done.stderr.startswith("error[bundle-altered]: ")
    assert "Traceback" not in done.stderr


def test_exit_2_without_a_command(int8_bundle: Path, python: str) -> None:
    done = run_bundle(int8_bundle, python=python)
    assert done.returncode == 2
    assert "verify" in done.stderr
    assert done.stdout == ""


def test_bench_on_the_oldest(int8_bundle: Path, requirements: str, tmp_path: Path) -> None:
    """Every figure on the oldest Python: it takes its seconds, so one version does it."""
    python = str(equipped(VERSIONS[0], requirements))
    done = run_bundle(
        int8_bundle, "bench", "--length", "smoke", "--threads", "1", "--json", python=python
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = found["model"]
    assert model["queries"] >= 64
    assert model["seconds"] > 0.5 * LENGTHS["smoke"][1]
    assert 0 < model["p50"] <= model["p90"]
    assert len(model["rounds_p50"]) == 3
    assert model["peak_rss_bytes"] > 1 << 20
    assert found["original"] is None
    assert found["ratio"] is None


def test_finish_on_the_oldest(
    gpu_standin: StandIn, tensorrt_bundle: Path, requirements: str
) -> None:
    """JetPack 5 has Python 3.8. The GPU and TensorRT are stand-ins; see gpu_standin."""
    python = str(equipped(VERSIONS[0], requirements))
    done = gpu_standin.run(tensorrt_bundle, "finish", python=python)
    assert done.returncode == 0, done.stderr
    done = gpu_standin.run(tensorrt_bundle, "verify", "--json", python=python)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["variant"]["sealed"]
    assert verdict["device"]["python"].startswith("3.8.")


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_an_old_pip_gets_a_wheel_of_each_decoder(version: str, tmp_path: Path) -> None:
    """Without --only-binary, as users call it: a source would need a compiler on the device."""
    python = find(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    lines = [*text.REQUIREMENTS, picture.REQUIREMENT, audio.REQUIREMENT]
    for _, _, wanted in code.PACKAGES:
        lines += [line for line in wanted if line not in lines]
    command = [python, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", tmp_path, *lines], capture_output=True, text=True, timeout=120
    )
    if OFFLINE.search(done.stderr):
        pytest.skip(f"nothing can be downloaded for {python}")
    assert done.returncode == 0, done.stderr
    fetched = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split("-")[0] for name in fetched] == ["pillow", "soundfile", "tokenizers"]
    assert all(name.endswith(".whl") for name in fetched)


@pytest.mark.parametrize("version", TOO_OLD)
def test_an_older_python_is_told_in_one_error(version: str, linear_bundle: Path) -> None:
    python = find(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    done = run_bundle(linear_bundle, "verify", python=str(python))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error[device-python]: this Python is older than the bundle needs\n"
        f"  why:  it needs 3.8 or newer; this is {version}\n"
        "  hint: run it with a newer python3\n"
    )
