"""The loader runs where there is numpy, one engine and an old Python: nothing else may slip in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

RUNTIME = ROOT / "edgepack" / "runtime"
TEMPLATE = ROOT / "edgepack" / "bundle" / "main_template.py"
OLDEST = (3, 8)
# What the loader may import beside the standard library. onnxruntime brings what it needs itself.
ALLOWED = {"numpy", "onnxruntime", "openvino", "tensorrt", "cuda", "pycuda"}
# Imported inside functions of `preprocess/` alone, by the bundles that take raw data.
DECODERS = {"PIL", "tokenizers", "soundfile"}
SOURCES = sorted(RUNTIME.rglob("*.py"))


def named(source: Path) -> str:
    return str(source.relative_to(RUNTIME.parent))


# Runs in a bare interpreter that sees a bundle and numpy's and onnxruntime's folder, and tells
# what every command of the loader brought along, numpy's and onnxruntime's own imports aside.
WATCH = """
import json, sys
import numpy, onnxruntime
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
from runtime.cli import main
from runtime import load
bundle = sys.argv[1]
load()(x=numpy.ones((1, 8), numpy.float32))
statuses = []
for command in (["verify"], ["run", "--output", sys.argv[2]], ["info"], ["device"],
                ["marked", "--repeats", "1"], ["bench-turn", "--queries", "1", "--seconds", "0"]):
    statuses.append(main(command))
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"new": new, "statuses": statuses}))
"""


def test_what_every_command_imports(linear_bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(linear_bundle), str(tmp_path / "out.npz")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == [0, 0, 0, 0, 0, 0]
    assert set(found["new"]) - set(sys.stdlib_module_names) - ALLOWED == {"runtime"}


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_imports_as_they_are_written(source: Path) -> None:
    """Of the package relative names alone; beside it the standard library and what is allowed."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            # Not above the loader: the folder is `edgepack/runtime` here, `runtime` in a bundle.
            folder = source.parents[node.level - 1]
            assert folder == RUNTIME or RUNTIME in folder.parents
            module = folder / (node.module or "").replace(".", "/")
            if not module.with_suffix(".py").is_file():
                for alias in node.names:
                    assert (module / f"{alias.name}.py").is_file(), alias.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in named or [alias.name for alias in node.names]:
                top = str(name).partition(".")[0]
                allowed = ALLOWED | set(sys.stdlib_module_names)
                if source.parent.name == "preprocess" and node.col_offset:
                    allowed |= DECODERS
                assert top in allowed, name


@pytest.mark.parametrize("source", [*SOURCES, TEMPLATE], ids=named)
def test_syntax_of_the_oldest_python(source: Path) -> None:
    ast.parse(source.read_text(encoding="utf-8"), feature_version=OLDEST)


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_annotations_are_not_evaluated(source: Path) -> None:
    """`X | None` in an annotation is fine on 3.8 as long as nobody evaluates it."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    if not tree.body[1:]:
        return  # a docstring alone
    futures = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert [alias.name for node in futures for alias in node.names] == ["annotations"]


def test_only_the_engine_s_module_imports_the_engine() -> None:
    importing = {
        source.stem
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(a.name == "onnxruntime" for a in node.names)
    }
    assert importing == {"onnx_session"}


def test_errors_and_formats_need_no_numpy() -> None:
    """The host's errors and `--help` stand on these; they must stay light."""
    code = (
        "import sys, edgepack.runtime.errors, edgepack.runtime.tensor\n"
        "import edgepack.runtime.bundle.index\n"
        "print(*(name for name in ('numpy', 'onnxruntime') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
