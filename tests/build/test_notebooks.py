"""The example notebooks run as they are, and show what a reader expects of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from support import ROOT, run_notebooks

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LIMIT_BYTES, LIMIT_LINES = 10_000, 8
VERDICTS = {"tensorrt_int8": "UNVERIFIED"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The notebooks' cells with their outputs, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("digits.py", "digits.csv.gz"):
        shutil.copy(ROOT / "examples" / name, folder)
    place = folder / "notebooks"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", run_notebooks.__file__, place, *NOTEBOOKS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), place


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_builds_a_bundle_in_a_few_lines(
    name: str, executed: tuple[dict[str, Any], Path]
) -> None:
    results, folder = executed
    cells = results[name]
    assert not isinstance(cells, str), cells
    (cell,) = [cell for cell in cells if "edgepack.build(" in cell["source"]]
    statement = cell["source"][cell["source"].index("bundle = ") :].strip().splitlines()
    # The last line shows the bundle.
    assert statement[-1] == "bundle"
    assert len(statement) - 1 <= LIMIT_LINES
    outputs = [output.get("data", {}) for output in cell["outputs"]]
    # The progress is one output that updates itself; the card comes last.
    (progress,) = [data["text/plain"] for data in outputs[:-1] if "text/plain" in data]
    assert [line.split()[1] for line in progress.splitlines()[:3]] == [
        "source",
        "samples",
        "original",
    ]
    assert f">{VERDICTS.get(name, 'PASS')}" in outputs[-1]["text/html"]
    streams = "".join(output.get("text", "") for output in cell["outputs"])
    assert ("UnverifiedWarning" in streams) == (name in VERDICTS)
    (path,) = re.findall(r'output="(\w+\.edgepack)"', cell["source"])
    assert (folder / path).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_small_and_has_no_outputs(path: Path) -> None:
    assert path.stat().st_size < LIMIT_BYTES
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
