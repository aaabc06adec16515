"""A bundle that carries the user's own code: one file prepares samples, one decodes outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgepack.bundle import admit
from edgepack.runtime.errors import DeviceError
from edgepack.runtime.model import load
from support.build_cases import ask
from support.bundle_cases import reseal, run_bundle
from support.code_cases import CLASSES, PREPROCESS, write_code_home

PRE = "preprocess/pre.py.txt"


def test_the_files_travel_as_data_and_are_listed(code_bundle: Path) -> None:
    with zipfile.ZipFile(code_bundle) as archive:
        names = archive.namelist()
        assert archive.read(PRE).decode() == PREPROCESS
        assert not [name for name in names if name.startswith("preprocess/") and name[-3:] == ".py"]
        # Arrays too, since edgepack itself does not run the code.
        assert "reference/input-0.npy" in names
        assert "reference/raw-000.txt" in names or "reference/raw-000.bin" in names
    done = run_bundle(code_bundle, "info")
    assert f"prepare in {PRE}" in done.stdout
    assert "decode in preprocess/post.py.txt" in done.stdout
    with admit(code_bundle) as admitted:
        assert admitted.loader.release is not None


def test_the_bundle_verifies_itself_and_edgepack_runs_none_of_its_code(
    code_bundle: Path, tmp_path: Path
) -> None:
    done = run_bundle(code_bundle, "verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["preprocessing"]["passed"]
    # With another function the bundle fails, and edgepack, which judges the arrays, cannot tell.
    other = tmp_path / "other.edgepack"
    marker = tmp_path / "marker"
    changed = PREPROCESS.replace("(32, 65, 97)", "(33, 66, 97)")
    changed += f"\nopen({str(marker)!r}, 'w').close()\n"
    reseal(code_bundle, other, {PRE: changed.encode()})
    answer = ask("verify", str(other))
    assert (answer.status, answer.document["verdict"]) == (0, "PASS")
    assert answer.document["preprocessing"] is None
    assert "only the bundle itself runs its own code" in answer.stderr
    with pytest.raises(DeviceError) as caught:
        load(other).predict(b"abc")
    assert caught.value.code == "code-refused"
    assert not marker.exists()
    # Nor does the loader of one bundle run the code of another.
    program = "import sys; sys.path.insert(0, sys.argv[1]); from runtime import load; "
    program += "load(sys.argv[2]).predict(b'abc')"
    command = [sys.executable, "-c", program, str(code_bundle), str(other)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "code-refused" in done.stderr
    assert not marker.exists()
    done = run_bundle(other, "verify")
    assert (done.returncode, marker.exists()) == (1, True)
    assert "FAIL preprocessing of shares" in done.stdout


def test_run_prints_the_decoded_results(code_bundle: Path) -> None:
    files = code_bundle.with_name("files")
    done = run_bundle(code_bundle, "run", str(files), "--json")
    assert done.returncode == 0, done.stderr
    predictions = json.loads(done.stdout)["predictions"]
    kinds = {Path(answer["file"]).parent.name: answer["result"]["kind"] for answer in predictions}
    assert [f"{'abcd'[i]}-{kind}" for i, kind in enumerate(kinds.values())] == list(CLASSES)
    done = run_bundle(code_bundle, "run", str(files / CLASSES[3] / "0.dat"))
    assert '{"kind": "lower", "score": ' in done.stdout


def test_a_sample_that_the_code_refuses_is_an_error_with_its_line(
    code_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    done = run_bundle(code_bundle, "run", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "error[code-failed]: prepare of pre.py failed" in done.stderr
    assert "ValueError: an empty file (pre.py, line 16)" in done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "code"),
    [
        ("pre.py", "import dataclasses", "import scipy", "code-import"),
        ("pre.py", "import dataclasses", "from . import other", "code-import"),
        ("pre.py", "import dataclasses", "match 1:\n    case 1: pass", "code-syntax"),
        ("pre.py", "def prepare", "def prepared", "code-missing"),
        ("post.py", "def decode", "import torch\ndef decode", "code-import"),
        ("pre.py", '"shares":', '"share":', "code-result"),
        ("pre.py", "np.float32", "np.float64", "code-result"),
        ("pre.py", "len(data)}", "0}", "code-failed"),
        ("bytes.toml", "pre.py:prepare", "none.py:prepare", "code-missing"),
    ],
)
def test_code_that_would_fail_on_a_device_is_refused_at_once(
    tmp_path: Path, file: str, old: str, new: str, code: str
) -> None:
    write_code_home(tmp_path)
    path = tmp_path / file
    text = path.read_text()
    if code == "code-failed":
        old, new = "return {", "raise KeyError(data)\n    return {"
    assert old in text
    path.write_text(text.replace(old, new, 1))
    answer = ask(
        "build", str(tmp_path / "bytes.onnx"), "--manifest", str(tmp_path / "bytes.toml"),
        "--target", "cpu-fbgemm", "--chain", "none", "--no-emulate", "--latency", "none",
        "--output", str(tmp_path / "x.edgepack"),
    )  # fmt: skip
    assert (answer.status, answer.code) == (2, code)
