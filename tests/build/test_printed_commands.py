"""Commands printed in the README and the documentation: those that need no board run, in order.

Blocks marked `sh` and `python` run in an empty folder, in the order of the page; a block with a
title is a file that the page asks the reader to write. Other blocks show commands that need a
board, a key or a network: their commands and options are checked to exist.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from torch import nn

from edgepack.cli import cli
from edgepack.runtime.cli import _make_parser as build_parser
from edgepack.spec import manifest, target
from support import ROOT
from support.text_cases import SENTENCES, train_tokenizer, write_table

README = ROOT / "README.md"
PICTURES = Path(os.environ.get("EDGEPACK_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# Made once, by the command that the pages print first.
MAKE_DIGITS = "python examples/digits.py"
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code on a page.

    Attributes:
        language: "sh", "python", ...; "" for a block that is not run.
        title: name of the file that it is; "" for commands.
        text: its lines.
    """

    language: str
    title: str
    text: str


def fenced(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(*match.groups("")) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `python examples/digits.py` writes."""
    folder = tmp_path_factory.mktemp("digits")
    script = ROOT / "examples" / "digits.py"
    subprocess.run([sys.executable, script], cwd=folder, check=True, capture_output=True)
    return folder


def run(command: list[str], folder: Path) -> str:
    """Run a command of a page and return its standard output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Every option may come from the environment; no page needs a latency to go on.
        "EDGEPACK_BUILD_LATENCY": "none",
        # Small operators in many threads stall if other processes want the same cores.
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(page: Path, folder: Path, digits: Path, *, fashion: bool = False) -> str:
    """Follow a page, and return the output of its programs in Python.

    Args:
        page: the README, or a page of the documentation.
        folder: the current folder of the reader.
        digits: the files that `python examples/digits.py` writes.
        fashion: run only the blocks about Fashion-MNIST; all others by default.
    """
    for name in ("examples", "manifests"):
        (folder / name).symlink_to(ROOT / name)
    printed = ""
    for block in fenced(page):
        if "/" in block.title or ("fashion" in block.text) != fashion:
            continue
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed += run([sys.executable, "-c", block.text], folder)
        elif block.language == "sh":
            commands = block.text
            if MAKE_DIGITS in commands:
                for path in digits.iterdir():
                    shutil.copy(path, folder)
                commands = commands.replace(MAKE_DIGITS, "true")
            run(["bash", "-euo", "pipefail", "-c", commands], folder)
    return printed


def test_the_readme_can_be_followed(tmp_path: Path, digits: Path) -> None:
    assert "scores" in follow(README, tmp_path, digits)


def test_the_tutorial_can_be_followed(tmp_path: Path, digits: Path) -> None:
    printed = follow(ROOT / "docs" / "tutorial.md", tmp_path, digits)
    accuracy = float(re.findall(r"([\d.]+)% of 597 digits", printed)[0])
    assert accuracy > 98
    assert (tmp_path / "precise.rejected.edgepack").exists()


@pytest.mark.parametrize("name", ["pytorch", "manifest", "ci"])
def test_a_guide_can_be_followed(tmp_path: Path, digits: Path, name: str) -> None:
    follow(ROOT / "docs" / "guides" / f"{name}.md", tmp_path, digits)
    assert (tmp_path / "digits-cpu-fbgemm.edgepack").is_file()


@pytest.mark.skipif(not PICTURES.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_the_example_on_fashion_mnist_can_be_built(tmp_path: Path, digits: Path) -> None:
    follow(ROOT / "docs" / "guides" / "pytorch.md", tmp_path, digits, fashion=True)
    assert (tmp_path / "fashion-resnet-cpu-fbgemm.edgepack").is_file()


def test_the_guide_to_hugging_face_folders_can_be_followed(tmp_path: Path, digits: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=200, max_position_embeddings=32, dim=16, n_heads=2, n_layers=1, hidden_dim=32,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.DistilBertForSequenceClassification(config)
    network.save_pretrained(tmp_path / "sentiment")
    train_tokenizer(tmp_path / "sentiment")
    # Of random weights, labels would refuse the network.
    words = " ".join(text for text, _ in SENTENCES).split()
    texts = np.random.default_rng(0).choice(words, (64, 9))
    write_table(tmp_path / "reviews.csv", [[" ".join(row)] for row in texts], ["text"])
    follow(ROOT / "docs" / "guides" / "huggingface.md", tmp_path, digits)
    assert (tmp_path / "sentiment-cpu-fbgemm.edgepack").is_file()


def test_the_guide_to_pictures_can_be_followed(tmp_path: Path, digits: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for name, channel in (("cat", 0), ("dog", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 120, (16, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            picture = image.fromarray(pixels).resize((320, 256))
            picture.save(tmp_path / "photos" / name / f"{number:02}.jpg")
    # Cats are red and dogs are blue.
    network = nn.Sequential(
        nn.Conv2d(3, 2, 1, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    weights = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    network[0].weight.data = weights[:, :, None, None]
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, 224, 224),),
        tmp_path / "photos.onnx",
        input_names=["image"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    follow(ROOT / "docs" / "guides" / "pictures.md", tmp_path, digits)
    assert (tmp_path / "photos-cpu-fbgemm.edgepack").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_printed_profile_and_manifest_is_valid(tmp_path: Path, page: Path) -> None:
    for number, block in enumerate(fenced(page)):
        if block.language == "toml" and block.title != "pyproject.toml":
            path = tmp_path / f"{number}.toml"
            text = block.text if "schema = 1" in block.text else "schema = 1\n" + block.text
            path.write_text(text, encoding="utf-8")
            if "extends" in text:
                target.load(str(path))
            else:
                manifest.load(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_shown_file_is_shown_as_it_is(page: Path) -> None:
    for block in fenced(page):
        if "/" in block.title:
            assert block.text == (ROOT / block.title).read_text(encoding="utf-8"), block.title


def test_every_file_that_the_readme_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![/\w])(?:examples|manifests|docs)/[\w./-]+\.\w+", text))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_is_short_and_begins_with_a_command_that_a_checkout_can_run() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert fenced(README)[1].text.startswith("python3 -m venv")


def code_lines(page: Path) -> Iterator[str]:
    """Yield the command lines in the code of a page, those that continue joined.

    Code in a sentence counts too: `edgepack passes quantize`.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [block.text for block in fenced(page) if block.language in ("", "sh", "yaml")]
    blocks += INDENTED.findall(FENCE.sub("", text))
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    for code in re.findall(r"`((?:edgepack|python3) [^`]+)`", FENCE.sub("", text)):
        yield " ".join(code.split())


def commands_of(page: Path, program: str) -> Iterator[list[str]]:
    """Yield the words after a program in the code of a page."""
    for line in code_lines(page):
        match = re.match(rf"\s*(?:- run: |set -e; |if |\$ )?(?:{program}) (\S.*)", line)
        if match is not None:
            words = shlex.split(match.group(1), comments=True)
            # What follows is another command of the shell.
            end = [n for n, word in enumerate(words) if word in ("|", "||", "&&", ">", "2>&1")]
            yield words[: min(end, default=len(words))]


def options_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0].rstrip(";") for word in words if re.match(r"--?[a-z]", word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_printed_command_and_option_exists(page: Path) -> None:
    for words in commands_of(page, "edgepack"):
        command: click.Command = cli
        context = click.Context(cli)
        rest = list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest.pop(0))
            assert found is not None, f"edgepack {' '.join(words)}"
            command = found
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        unknown = set(options_of(rest)) - known - {"-h", "--help", "--version"}
        assert not unknown, f"edgepack {' '.join(words)}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_printed_command_of_a_bundle_exists(page: Path) -> None:
    for words in commands_of(page, r"\S*python3? [\w./-]+\.edgepack"):
        build_parser().parse_args(words)
