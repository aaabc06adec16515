"""Mutated bundles: each gives a verdict, or an error with a code; never a traceback or a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack import bundle
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_all, read_index
from edgepack.runtime.errors import BundleError
from edgepack.runtime.tensor import Tensor
from support import ROOT, mutated_bundles
from support.bundle_cases import run_bundle
from support.linear import linear_contents, linear_onnx


@pytest.fixture(scope="module")
def whole_bundle(linear_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear network with answers of its own and the report of a real build."""
    path = tmp_path_factory.mktemp("mutated") / "whole.edgepack"
    report = (ROOT / "tests" / "support" / "report_example.json").read_bytes()
    contents = linear_contents()
    pages = {"report.json": report, "report.html": b"<p>report</p>"}
    bundle.write(path, replace(contents, built=contents.original, report=pages))
    return path


@pytest.mark.parametrize(
    ("kind", "count"), [("index", 200), ("array", 120), ("model", 120), ("report", 300)]
)
def test_every_mutation_is_a_verdict_or_an_error_with_a_code(
    kind: str, count: int, whole_bundle: Path, tmp_path: Path
) -> None:
    arguments = [str(whole_bundle), str(tmp_path), kind, "20261130", str(count)]
    done = subprocess.run(
        [sys.executable, mutated_bundles.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert not result["faults"], "\n".join(result["faults"][:5])
    # A mutation that changes nothing, or is refused always by one check, would prove little.
    assert len(result["outcomes"]) >= (2 if kind == "report" else 5), result["outcomes"]


def written(
    path: Path, change: Callable[[dict], None] = lambda document: None, **entries: bytes
) -> Path:
    """A sealed copy of the bundle, its index changed; an entry's name without its folder."""
    held = mutated_bundles.read_entries(path)
    for name, data in entries.items():
        (full,) = (entry for entry in held if Path(entry).stem == name.replace("_", "-"))
        held[full] = data
    document = json.loads(held["bundle.json"])
    change(document)
    copy = path.with_name("changed.edgepack")
    mutated_bundles.write_bundle(copy, held, document)
    return copy


def rename_output(document: dict) -> None:
    """Give the output a name that the graph lacks, wherever the index has it."""
    document["outputs"][0]["name"] = "absent"
    document["parts"]["absent"] = document["parts"].pop("y")


NOT_A_HEADER = b"\x93NUMPY\1\0\x03\0" + b"'''"


@pytest.mark.parametrize(
    ("change", "entries", "code"),
    [
        (lambda d: d.update(metric=[]), {}, "bundle-index"),
        (rename_output, {}, "bundle-model"),
        (lambda d: d["inputs"][0].update(dtype="int64"), {}, "bundle-model"),
        (lambda d: d["outputs"].append(d["outputs"][0]), {}, "bundle-index"),
        (lambda d: d["gates"]["quality"].update(agreement=-1e308), {}, "bundle-index"),
        (lambda d: d["gates"]["quality"].update(agreement=10**400), {}, "bundle-index"),
        (lambda d: None, {"original_0": NOT_A_HEADER}, "bundle-reference"),
        (lambda d: None, {"input_0": NOT_A_HEADER}, "bundle-reference"),
    ],
)
def test_the_loader_names_what_is_wrong(
    change: Callable[[dict], None], entries: dict[str, bytes], code: str, whole_bundle: Path
) -> None:
    path = written(whole_bundle, change, **entries)
    status, out, _ = mutated_bundles.run_loader(path, "verify")
    assert (status, json.loads(out)["error"]["code"]) == (2, code)


def test_text_is_not_handed_to_the_engine(linear_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime crashes on an array of text whose characters do not exist."""
    source = tmp_path / "text.npz"
    np.savez(source, x=np.frombuffer(b"\xff" * 32, "<U1").reshape(1, 8))
    arguments = ("run", "--input", str(source), "--output", str(tmp_path / "out.npz"), "--json")
    done = run_bundle(linear_bundle, *arguments)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "input-type")


def test_what_the_engine_prints_stays_out_of_the_document(tmp_path: Path) -> None:
    """onnxruntime prints "EP Error" where a name in the graph is not UTF-8."""
    path, contents = tmp_path / "name.edgepack", linear_contents()
    model = contents.model.replace(b"\n\1x\n\1w", b"\n\1\xd3\n\1w")
    assert model != contents.model
    bundle.write(path, replace(contents, model=model))
    done = run_bundle(path, "verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "engine-refused")
    assert "EP Error" not in done.stdout


def test_the_name_of_a_tensor_does_not_steer_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\x1b]0;t\x07"
    model, _ = linear_onnx()
    model.graph.node[0].output[0] = model.graph.output[0].name = name
    outputs = [Tensor(name, "float32", ("batch", 3), "scores")]
    path = tmp_path / "name.edgepack"
    contents = replace(linear_contents(), model=model.SerializeToString(), outputs=outputs)
    bundle.write(path, contents)
    for command in ("info", "verify"):
        _, _, err = mutated_bundles.run_loader(path, command)
        assert "\x1b" not in err, command
        assert "\\x1b[2J" in err, command


def test_a_file_that_is_cut_while_it_is_read_is_an_error(
    whole_bundle: Path, tmp_path: Path
) -> None:
    """A mapped file would end the process with SIGBUS."""
    data = whole_bundle.read_bytes()
    path = tmp_path / "cut.edgepack"
    for size in (0, 100, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data)
        with Archive(str(path)) as archive:
            os.truncate(path, size)
            with pytest.raises(BundleError) as caught:
                check_all(archive, read_index(archive))
        assert caught.value.code in ("bundle-changed", "bundle-altered")


CUT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import runtime.cli
os.truncate(sys.argv[1], int(sys.argv[2]))
sys.exit(runtime.cli.main(["verify", "--json"]))
"""


@pytest.mark.parametrize("size", [0, 5000, 100_000])
def test_a_loader_that_is_cut_before_it_is_imported_is_an_error(
    size: int, whole_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.edgepack"
    path.write_bytes(whole_bundle.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path), str(size)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["code"] in ("bundle-malformed", "bundle-changed")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["runtime/cli.py", "runtime/errors.py", "runtime/model.py"])
def test_a_damaged_loader_is_an_error(name: str, whole_bundle: Path, tmp_path: Path) -> None:
    with Archive(str(whole_bundle)) as archive:
        start = archive.entries[name].start
    data = bytearray(whole_bundle.read_bytes())
    data[start : start + 10] = b"\x00" * 10
    path = tmp_path / "damaged.edgepack"
    path.write_bytes(data)
    done = run_bundle(path, "verify", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] in ("bundle-damaged", "bundle-altered")
    assert "Traceback" not in done.stderr
