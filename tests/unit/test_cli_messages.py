"""Hints of the command line: each can be followed as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from edgepack.cli import cli
from edgepack.cli.boundary import format_command
from edgepack.errors import SourceError
from edgepack.source.factory import find
from support.build_cases import ask

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_users_command_is_printed_with_all_its_options() -> None:
    words = ["build", "my model.pt", "--target", "cpu-fbgemm", "--random-calibration",
             "--arch", "net.py:f", "--chain", "prune,quantize"]  # fmt: skip
    with cli.make_context("edgepack", list(words)):
        command = format_command(("--random-calibration",), ("--calibration", "PATH"))
    assert command.startswith("edgepack build 'my model.pt' --target cpu-fbgemm --arch net.py:f")
    assert shlex.split(command)[-4:] == ["--chain", "prune,quantize", "--calibration", "PATH"]


def test_a_file_of_another_kind_is_no_suggestion_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.log").touch()
    answer = ask("build", str(tmp_path / "model.onx"), "--target", "cpu-fbgemm", "--dry-run")
    assert answer.code == "source-missing"
    assert "model.log" not in str(answer.document)
    (tmp_path / "model.onnx").touch()
    answer = ask("build", str(tmp_path / "model.onx"), "--target", "cpu-fbgemm", "--dry-run")
    assert "did you mean" in answer.document["error"]["hint"]


def test_a_python_file_without_its_function() -> None:
    with pytest.raises(SourceError) as refused:
        find("net.py", ())
    assert "--arch net.py:FUNCTION" in refused.value.hint


def test_a_picture_is_no_samples(linear_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(PNG)
    answer = ask(
        "run", str(linear_bundle), "--input", str(picture), "--output", str(tmp_path / "y")
    )
    assert answer.code == "samples-unreadable"
    assert answer.document["error"]["why"] == "it is neither an .npz nor an .npy file"
