"""Every pass, in every mode, writes the model files that it wrote when they were last recorded.

The hashes stand in `pass_bytes.json`. A change of code that is meant to leave every model as it is
must not touch that file; one that changes models records them anew with

    EDGEPACK_RECORD_BYTES=1 pytest tests/build/test_pass_bytes.py

Record in one process; `-k` records a subset. Comparing may use several (`-n 2`).

Rounding depends on the instruction set and on the versions of a few packages. Elsewhere than on
the machine of the record the tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from pass_nets import VALUES, write

from support.build_cases import ask

pytest.importorskip("accelerate")
pytest.importorskip("torch_pruning")
pytest.importorskip("transformers")

RECORD = Path(__file__).with_name("pass_bytes.json")
RECORDING = "EDGEPACK_RECORD_BYTES" in os.environ

PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "numpy", "torch-pruning", "accelerate",
    "transformers",
)  # fmt: skip
FLAGS = ("asimd", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")

# No case tests a gate, except the one of `repair`.
LOOSE = {"agreement": 0.0, "snr_db": -200}
LOOSE_VALUES = {"snr_db": -200}
STRICT = {"agreement": 0.5, "snr_db": 15}
_GATES = {"loose": LOOSE, "values": LOOSE_VALUES, "strict": STRICT}

SHORT = "epochs=2:batch_size=8:holdout=0.25"


@dataclass(frozen=True)
class Case:
    """One build.

    Attributes:
        net: name of a network in `pass_nets`.
        chain: the passes.
        target: the profile.
        strict: bound the quality, so that the build repairs what misses the bounds.
    """

    net: str
    chain: str
    target: str = "cpu-fbgemm"
    strict: bool = False

    @property
    def gates(self) -> str:
        """Return the name of the gates in `_GATES`."""
        if self.strict:
            return "strict"
        return "values" if self.net in VALUES else "loose"

    @property
    def id(self) -> str:
        suffix = "-strict" if self.strict else ""
        return f"{self.target}-{self.net}-{self.chain}{suffix}"


def _cases() -> Iterator[Case]:
    """Yield the builds, by pass."""
    # Without a pass: reading, normalization, export and simplification.
    for net in ("fused", "newer", "low_precision", "branching", "Residual", "Encoder", "bert"):
        yield Case(net, "none")
    # The default form of every layer, by target.
    for net in (
        "residual", "gated", "fused", "branching", "recurrent", "volume", "normalized", "mobile",
        "bert",
    ):  # fmt: skip
        yield Case(net, "quantize")
    for net in ("gated", "normalized", "volume"):
        yield Case(net, "quantize", "arm-qnnpack")
    for net in ("residual", "gated", "volume", "recurrent", "normalized", "branching"):
        yield Case(net, "quantize,half", "tensorrt-int8")
    yield Case("residual", "quantize", "tensorrt-int8")
    yield Case("gated", "quantize:equalize=both", "tensorrt-int8")
    yield Case("volume", "quantize:conv3d=float", "tensorrt-int8")
    yield Case("gated", "quantize,half", "jetson-trt")
    # Options of the static mode.
    for option in (
        "calibrator=minmax", "calibrator=percentile:percentile=99", "calibrator=entropy",
        "range=full", "range=reduced", "rounding=nearest", "rounding=nearest:bias_correction=false",
    ):  # fmt: skip
        yield Case("gated", f"quantize:{option}")
    yield Case("residual", "quantize:equalize=cross-layer")
    yield Case("residual", "quantize:exclude=n_conv_0")
    yield Case("normalized", "quantize:equalize=smooth")
    yield Case("normalized", "quantize:equalize=both:alpha=0.7")
    for form in ("weights", "float"):
        yield Case("recurrent", f"quantize:recurrent={form}")
    for form in ("static", "float"):
        yield Case("volume", f"quantize:conv3d={form}")
    yield Case("outlier", "quantize", strict=True)
    yield Case("outlier", "quantize,half", "tensorrt-int8", strict=True)
    # The modes without calibrated activations.
    for net in ("residual", "recurrent", "branching", "bert"):
        yield Case(net, "quantize:mode=dynamic")
    for net in ("residual", "recurrent", "normalized", "volume"):
        yield Case(net, "quantize:mode=weights")
    yield Case("bert", "quantize:mode=weights:bits=4")
    yield Case("normalized", "quantize:mode=dynamic:rounding=gptq")
    yield Case("normalized", "quantize:mode=dynamic:bias_correction=true")
    yield Case("normalized", "quantize:mode=weights:rounding=gptq")
    yield Case("normalized", "quantize:mode=weights:bits=4:block=16:rounding=gptq")
    # fp16.
    for net in ("loud", "norm", "attention", "gated", "recurrent", "branching", "normalized"):
        yield Case(net, "half", "cuda-fp16")
    yield Case("loud", "half:margin=100", "cuda-fp16")
    yield Case("gated", "half:keep=n_conv_0", "cuda-fp16")
    yield Case("gated", "half")
    # Fewer channels, heads and weights.
    for option in (
        "structured=0.4", "structured=0.4:importance=taylor",
        "structured=0.4:of=macs:round_to=1", "structured=0.4:per_layer=true:importance=l1",
        "unstructured=0.5", "pattern=2:4",
    ):  # fmt: skip
        yield Case("Residual", f"prune:{option}")
    yield Case("mobile", "prune:structured=0.4")
    yield Case("bert", "prune:structured=0.3")
    # Layers as two thinner ones.
    for option in ("parameters=0.6", "method=svd", "energy=0.9", "snr_db=10"):
        yield Case("perceptron", f"factorize:{option}:round_to=4")
    yield Case("Residual", "factorize:parameters=0.7")
    yield Case("bert", "factorize:round_to=4")
    # Training.
    yield Case("mobile", f"distill:{SHORT}:optimizer=sgd:lr=0.01:schedule=cosine")
    yield Case("mobile", f"distill:{SHORT}:student=modules.py:student")
    yield Case("perceptron", f"distill:{SHORT}:precision=bf16:accumulate=2:stop=plateau")
    yield Case("perceptron", f"distill:{SHORT}:augment=modules.py:augment:schedule=constant")
    yield Case("bert", f"distill:{SHORT}:layers=0,2:cosine=0.5")
    yield Case("mobile", f"distill:{SHORT}:aware=true,quantize")
    yield Case("Residual", f"distill:{SHORT}:aware=true,quantize", "arm-qnnpack")
    yield Case("Residual", f"distill:{SHORT}:aware=true,quantize,half", "tensorrt-int8")
    # Passes in a row.
    yield Case(
        "Residual",
        f"prune:structured=0.3,factorize:parameters=0.8:round_to=4,distill:{SHORT},quantize",
    )
    yield Case("bert", f"prune:unstructured=0.5,distill:{SHORT},quantize:mode=dynamic")


CASES = tuple(_cases())


def _machine() -> dict[str, Any]:
    """Return what the bytes depend on besides edgepack."""
    flags: set[str] = set()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        flags.update(information.read_text().split())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    return {
        "machine": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "packages": versions,
    }


def _difference(recorded: dict[str, Any], current: dict[str, Any]) -> str:
    """Return the first difference between two machines; "" if there is none."""
    for key in current:
        if key == "packages":
            for name, number in current[key].items():
                if recorded[key].get(name) != number:
                    return f"recorded with {name} {recorded[key].get(name)}, here is {number}"
        elif recorded[key] != current[key]:
            return f"recorded on {key} {recorded[key]}, here is {current[key]}"
    return ""


@pytest.fixture(scope="module")
def recorded() -> Iterator[dict[str, Any]]:
    """The recorded builds; with EDGEPACK_RECORD_BYTES, those of this run are written."""
    if RECORDING:
        builds: dict[str, Any] = {}
        yield builds
        # A run of some of the cases leaves the others as they are.
        if RECORD.is_file():
            document = json.loads(RECORD.read_text())
            if document["machine"] == _machine():
                builds = {**document["builds"], **builds}
        identifiers = {case.id for case in CASES}
        builds = {name: builds[name] for name in sorted(builds) if name in identifiers}
        document = {"machine": _machine(), "builds": builds}
        RECORD.write_text(json.dumps(document, indent=1) + "\n")
        return
    document = json.loads(RECORD.read_text())
    difference = _difference(document["machine"], _machine())
    if difference:
        pytest.skip(f"hashes of model files {difference}")
    yield document["builds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks, each written on first use, and the manifests."""
    path = tmp_path_factory.mktemp("bytes")
    for name, gates in _GATES.items():
        bounds = "\n".join(f"{gate} = {bound}" for gate, bound in gates.items())
        manifest = f"schema = 1\n[gates.quality]\n{bounds}\n[reference]\nsamples = 2\n"
        (path / f"{name}.toml").write_text(manifest)
    return path


@pytest.fixture(scope="module")
def networks() -> dict[str, list[str]]:
    """The arguments of the build of every network that is written."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.usefixtures("one_thread")
def test_the_model_files_are_those_that_were_recorded(
    case: Case,
    recorded: dict[str, Any],
    folder: Path,
    networks: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEPACK_CACHE", str(folder / "cache"))
    if case.net not in networks:
        networks[case.net] = write(case.net, folder)
    arguments = networks[case.net]
    if "distill" in case.chain or "taylor" in case.chain:
        arguments = [*arguments, "--training", str(folder / f"{case.net}-training.npz")]
    answer = ask(
        "build", *arguments, "--target", case.target, "--chain", case.chain, "--manifest",
        f"{case.gates}.toml",
        "--latency", "none", "--no-emulate", "--allow-unverified", "--output", "x.edgepack",
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    with zipfile.ZipFile("x.edgepack") as archive:
        files = {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in sorted(archive.namelist())
            if name.startswith("model/")
        }
    assert files
    result = {"stages": [record["stage"] for record in answer.document["ledger"]], "files": files}
    if RECORDING:
        recorded[case.id] = result
    else:
        assert result == recorded[case.id]
