"""Plug-ins of another distribution, installed by pip, through the command line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.onnx_tools.view import GraphView, list_weights
from support.build_cases import Home, entry
from support.bundle_cases import run_bundle

PACKAGE = Path(__file__).parents[1] / "plugin_package"
PROFILE = """schema = 1
extends = "cpu-fbgemm"
name = "tagged"
[engine]
name = "onnxruntime-tagged"
[clip]
limit = 0.25
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package as pip installs it, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "package")
    install = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--target", str(target), str(source / "package")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert install.returncode == 0, install.stderr
    return target


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with another folder of installed packages."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "edgepack", *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


def install_entry(folder: Path, group: str, name: str, module: str, text: str = "") -> None:
    """Write the metadata of a distribution with one entry point, as pip leaves them."""
    information = folder / "edgepack_faulty-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: edgepack-faulty\nVersion: 0.1\n"
    )
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    (folder / "edgepack_faulty.py").write_text(text)


def refuse(folder: Path, arguments: list[str], output: Path) -> dict[str, str]:
    """Return the error of a build that must fail without an output, in one object."""
    done = run(folder, *arguments, "--output", str(output), "--json")
    assert done.returncode == 2, done.stderr
    assert not output.exists()
    assert "Traceback" not in done.stderr
    error: dict[str, str] = json.loads(done.stdout)["error"]
    return error


def test_a_pass_an_engine_and_a_source_build_a_verified_bundle(
    site: Path, home: Home, tmp_path: Path
) -> None:
    (tmp_path / "tagged.toml").write_text(PROFILE)
    (tmp_path / "manifest.toml").write_text(
        "schema = 1\n[clip]\nlimit = 0.5\n[gates.quality]\nsnr_db = -20\nagreement = 0\n"
        "metric_ratio = 0\n"
    )
    packed = tmp_path / "tiny.gz"
    packed.write_bytes(gzip.compress(Path(home / "tiny.onnx").read_bytes()))
    output = tmp_path / "tiny.edgepack"
    arguments = home.build(str(packed), "--chain", "clip,quantize")
    arguments[arguments.index("cpu-fbgemm")] = str(tmp_path / "tagged.toml")
    arguments += ["--manifest", str(tmp_path / "manifest.toml"), "--output", str(output)]
    done = run(site, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    records = {record["stage"]: record for record in report["ledger"]}
    credit = "Provided by the plug-in edgepack-example 1.2.0."
    # The manifest overrides the profile: 0.5, not 0.25.
    assert records["clip"]["notes"][-1] == credit
    assert records["clip"]["notes"][0].endswith("weights to a magnitude of 0.5.")
    assert records["clip"]["details"]["clipped"] > 0
    assert "Tagged with the name of the target, tagged." in records["engine"]["notes"]
    assert credit in records["engine"]["notes"]
    assert credit in records["source"]["notes"]
    assert report["source"]["kind"] == "gzip-onnx"
    assert report["tools"]["edgepack-example"] == "1.2.0"
    assert report["target"]["precision"] == "int8"
    model = onnx.load_model_from_string(entry(output, "model/model.onnx"))
    assert [(prop.key, prop.value) for prop in model.metadata_props] == [("target", "tagged")]
    # On the device there is no plug-in, and none is needed.
    assert run_bundle(output, "verify", "--json").returncode == 0
    index = json.loads(entry(output, "bundle.json"))
    assert index["variants"][0]["engine"] == "onnxruntime"
    assert "clip" in entry(output, "report/report.html").decode()


def test_another_limit_or_another_code_is_another_result(
    site: Path, home: Home, tmp_path: Path
) -> None:
    copied = tmp_path / "site"
    shutil.copytree(site, copied)
    loose = tmp_path / "manifest.toml"
    loose.write_text("schema = 1\n[gates.quality]\nsnr_db = -20\nagreement = 0\nmetric_ratio = 0\n")

    def clipped(limit: str) -> tuple[str, float]:
        output = tmp_path / "tiny.edgepack"
        done = run(
            copied,
            *home.build("tiny.onnx", "--chain", f"clip:limit={limit}"),
            *("--manifest", str(loose), "--output", str(output), "--json"),
        )
        assert done.returncode == 0, done.stderr
        ledger = json.loads(done.stdout)["ledger"]
        (status,) = [record["status"] for record in ledger if record["stage"] == "clip"]
        model = onnx.load_model_from_string(entry(output, "model/model.onnx"))
        view = GraphView(model)
        weights = [numpy_helper.to_array(view.initializers[name]) for name in list_weights(view)]
        return status, max(float(np.abs(array).max()) for array in weights)

    assert clipped("0.125") == ("done", 0.125)
    assert clipped("0.125") == ("cached", 0.125)
    assert clipped("0.0625") == ("done", 0.0625)
    code = copied / "edgepack_example" / "clip.py"
    code.write_text(code.read_text().replace("-options.limit, options.limit", "-0.03125, 0.03125"))
    assert clipped("0.125") == ("done", 0.03125)


def test_a_plugin_is_imported_only_when_it_is_used(site: Path, home: Home, tmp_path: Path) -> None:
    """A broken one is no fault of a build without it."""
    text = "raise RuntimeError('imported')\n"
    install_entry(tmp_path, "edgepack.passes", "clip", "edgepack_faulty:CLIP", text)
    done = run(tmp_path, *home.build("tiny.onnx", "--dry-run"))
    assert done.returncode == 0, done.stderr
    error = refuse(tmp_path, home.build("tiny.onnx", "--chain", "clip"), tmp_path / "x.edgepack")
    assert error["code"] == "plugin-broken"
    assert "edgepack-faulty 0.1" in error["what"]
    assert "RuntimeError: imported" in error["why"]
    assert "pip uninstall edgepack-faulty" in error["hint"]


def test_a_metric_judges_a_bundle(site: Path, home: Home, tmp_path: Path) -> None:
    output = tmp_path / "tiny.edgepack"
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    arguments += ["--metric", "label-score", "--output", str(output), "--json"]
    done = run(site, *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    metric = report["quality"]["metric"]
    assert (metric["name"], metric["higher_is_better"]) == ("label-score", True)
    gates = {gate["name"]: gate for gate in report["quality"]["gates"]}
    assert gates["metric_ratio"]["output"] == "label-score"
    assert gates["metric_ratio"]["measured"] == metric["model"] / metric["original"]
    records = {record["stage"]: record for record in report["ledger"]}
    assert "Provided by the plug-in edgepack-example 1.2.0." in records["original"]["notes"]
    assert report["tools"]["edgepack-example"] == "1.2.0"
    assert json.loads(entry(output, "bundle.json"))["metric"] == "label-score"
    assert run_bundle(output, "verify", "--json").returncode == 0


def test_a_faulty_metric_is_one_clear_error(home: Home, tmp_path: Path) -> None:
    text = (
        "class Faulty:\n"
        "    name, higher_is_better = 'faulty', True\n"
        "    def compute(self, outputs, labels):\n"
        "        return 1 / 0\n"
        "FAULTY = Faulty()\n"
    )
    install_entry(tmp_path, "edgepack.metrics", "faulty", "edgepack_faulty:FAULTY", text)
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    error = refuse(tmp_path, [*arguments, "--metric", "faulty"], tmp_path / "x.edgepack")
    assert error["code"] == "metric-failed"
    assert "ZeroDivisionError" in error["why"]
    assert error["hint"] == "report it to the authors of edgepack-faulty"


@pytest.mark.parametrize(
    ("group", "name", "code"),
    [
        ("edgepack.passes", "quantize", "plugin-collision"),
        ("edgepack.passes", "verify", "plugin-collision"),
        ("edgepack.passes", "gates", "plugin-collision"),
        ("edgepack.engines", "tensorrt", "plugin-collision"),
        ("edgepack.passes", "Clip it", "plugin-name"),
    ],
)
def test_a_name_that_is_taken_is_one_clear_error(
    home: Home, tmp_path: Path, group: str, name: str, code: str
) -> None:
    install_entry(tmp_path, group, name, "edgepack_faulty:X")
    error = refuse(tmp_path, home.build("tiny.onnx"), tmp_path / "x.edgepack")
    assert error["code"] == code
    assert repr(name) in error["what"]
    assert "edgepack-faulty 0.1" in error["what"]


def test_a_format_that_is_taken_is_one_clear_error(home: Home, tmp_path: Path) -> None:
    install_entry(tmp_path, "edgepack.sources", "onnx", "edgepack_faulty:X")
    error = refuse(tmp_path, home.build("tiny.onnx"), tmp_path / "x.edgepack")
    assert error["code"] == "plugin-collision"


def test_a_metric_that_is_taken_is_one_clear_error(home: Home, tmp_path: Path) -> None:
    install_entry(tmp_path, "edgepack.metrics", "top1", "edgepack_faulty:X")
    arguments = home.build("tiny.onnx", "--metric", "top1")
    assert refuse(tmp_path, arguments, tmp_path / "x.edgepack")["code"] == "plugin-collision"


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ("CLIP = object()", "plugin-invalid", "edgepack_faulty:CLIP has no valid name"),
        ("", "plugin-broken", "AttributeError"),
        (
            "from edgepack.passes import GraphPass\n"
            "from edgepack.passes.options import PassOptions\n"
            "from dataclasses import dataclass\n"
            "@dataclass(frozen=True)\n"
            "class Options(PassOptions):\n"
            "    pass\n"
            "class Clip(GraphPass):\n"
            "    name, options = 'clip', Options\n"
            "    def apply(self, model, samples, options, progress):\n"
            "        return 1 / 0\n"
            "CLIP = Clip()\n",
            "plugin-failed",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_faulty_plugin_is_one_clear_error(
    home: Home, tmp_path: Path, text: str, code: str, why: str
) -> None:
    install_entry(tmp_path, "edgepack.passes", "clip", "edgepack_faulty:CLIP", text)
    error = refuse(tmp_path, home.build("tiny.onnx", "--chain", "clip"), tmp_path / "x.edgepack")
    assert error["code"] == code
    assert why in error["why"]
    assert "edgepack-faulty 0.1" in error["what"]


def test_a_plugin_takes_over_no_format_of_edgepack(home: Home, tmp_path: Path) -> None:
    """A plug-in that claims every file is asked only about files that edgepack does not know."""
    text = (
        "class Greedy:\n"
        "    name, description, takes_network = 'greedy', 'anything', False\n"
        "    def detect(self, path):\n"
        "        return True\n"
        "    def load(self, path, options):\n"
        "        raise RuntimeError('taken over')\n"
        "GREEDY = Greedy()\n"
    )
    install_entry(tmp_path, "edgepack.sources", "greedy", "edgepack_faulty:GREEDY", text)
    done = run(tmp_path, *home.build("tiny.onnx", "--dry-run", "--json"))
    assert json.loads(done.stdout)["kind"] == "onnx"
    unknown = tmp_path / "model.bin"
    unknown.write_bytes(b"MODEL")
    done = run(tmp_path, *home.build(str(unknown), "--dry-run", "--json"))
    assert json.loads(done.stdout)["kind"] == "greedy"
    error = refuse(tmp_path, home.build(str(unknown)), tmp_path / "x.edgepack")
    assert (error["code"], "taken over" in error["why"]) == ("plugin-failed", True)
