"""README's commands, run one after another as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = Path(os.environ.get("EDGEPACK_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_file_that_is_named_exists() -> None:
    named = set(
        re.findall(r"(?<![/\w])(?:examples|manifests|edgepack|benchmarks)/[\w./-]+\.\w+", README)
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"\bmake (demo|test|bench|clean)\b", README)):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.skipif(not PICTURES.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_the_commands_run(tmp_path: Path) -> None:
    for folder in ("examples", "manifests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Every option may come from the environment; the latency is no matter here.
        "EDGEPACK_BUILD_LATENCY": "none",
    }
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        assert "scores" in done.stdout
