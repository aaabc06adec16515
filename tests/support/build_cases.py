"""Small trained models with their samples in one folder, and the command line over them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from edgepack.cli import cli
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_all, read_index

SIZE, CLASSES = 16, 4

# The user's code: networks, and the helper module that one of them is built with.
NETS = '''
import torch
from torch import nn

from parts import head


def tiny(classes=4):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(classes),
    )


class Tagger(nn.Module):
    """Integer tokens and a float bias, both with a dynamic length."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens, bias):
        return self.out(self.table(tokens) + bias[..., None])


class Cell(nn.Module):
    """A state whose batch is not at axis 0."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(12, 4)

    def forward(self, x, state):
        following = torch.tanh(self.mix(torch.cat((x, state[0]), 1)))
        return following * 2, torch.stack((following, state[0]))


class Scaled(nn.Module):
    """An input that is a single number; outputs with names."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x, scale):
        scores = self.out(x) * scale
        return {"scores": scores, "best": scores.argmax(-1), "scale": scale + 1}


class Steps(nn.Module):
    """A recurrent layer as torch makes it: the time is at axis 0."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 3)

    def forward(self, x):
        return self.cell(x)[0]


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale if x.sum() > 0 else x


class Frozen(nn.Module):
    """The number of samples is written into it."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(x.reshape(2, 4))
'''
PARTS = """
from torch import nn


def head(classes):
    return nn.Linear(16, classes)
"""
SAMPLES = """
import numpy as np


def calibration():
    generator = np.random.default_rng(3)
    for label in range(120):
        image = generator.normal(label % 4 - 1.5, 1, (1, 16, 16)).astype("float32")
        yield {"image": image, "label": label % 4}
"""
MANIFEST = """
schema = 1
name = "pictures"

[model]
arch = "nets.py:tiny"
args = { classes = 4 }

[[inputs]]
name = "image"
dtype = "float32"
shape = ["batch", 1, 16, 16]

[[outputs]]
name = "logits"
kind = "scores"

[calibration]
samples = "pictures"

[evaluation]
samples = "pictures"

[pictures]
resize = 16
crop = 16
colour = "grey"
layout = "nchw"
scale = 0.0078431372549
mean = [1.0]
std = [1.0]

[reference]
samples = 5
"""


@dataclass(frozen=True)
class Home:
    """A user's folder: models, code and samples; see `home`."""

    folder: Path

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)

    def build(self, model: str, *options: str, calibration: str = "calibration.npz") -> list[str]:
        """The arguments of a fast build of one of the folder's models.

        Without what takes seconds and says nothing of this test: emulated CPUs, latency.
        """
        samples = ["--calibration", self / calibration] if calibration else []
        return ["build", self / model, "--target", "cpu-fbgemm", "--latency", "none",
                "--no-emulate", *samples, *options]  # fmt: skip


def tiny_onnx(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network `tiny` of NETS, written by hand."""
    nodes = [
        helper.make_node("Conv", ["image", "0.weight", "0.bias"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["c"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "6.weight", "6.bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tiny_weights(seed: int = 14) -> dict[str, np.ndarray]:
    """Weights of `tiny`; with this seed three of its classes occur among `images`."""
    shapes = {"0.weight": (8, 1, 3, 3), "0.bias": (8,), "2.weight": (16, 8, 3, 3), "2.bias": (16,),
              "6.weight": (CLASSES, 16), "6.bias": (CLASSES,)}  # fmt: skip
    generator = np.random.default_rng(seed)
    return {
        name: (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def images(count: int, seed: int) -> np.ndarray:
    """Pictures whose brightness and contrast differ, so that the classes do."""
    generator = np.random.default_rng(seed)
    level, contrast = generator.normal(size=(2, count, 1, 1, 1)) * 2
    noise = generator.normal(size=(count, 1, SIZE, SIZE))
    return (level + contrast * noise).astype(np.float32)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """nets.py, parts.py, samples.py; tiny.onnx with labelled samples; no torch is imported."""
    folder = tmp_path_factory.mktemp("home")
    for name, text in (("nets.py", NETS), ("parts.py", PARTS), ("samples.py", SAMPLES)):
        (folder / name).write_text(text)
    onnx.save(tiny_onnx(tiny_weights()), folder / "tiny.onnx")
    session = onnxruntime.InferenceSession(str(folder / "tiny.onnx"))
    for role, count, seed in (("calibration", 120, 1), ("evaluation", 40, 2)):
        fed = images(count, seed)
        labels = session.run(None, {"image": fed})[0].argmax(1)
        np.savez(folder / f"{role}.npz", image=fed, labels=labels)
    assert len(np.unique(labels)) > 2
    np.savez(folder / "unlabelled.npz", image=fed)
    return Home(folder)


@pytest.fixture(scope="session")
def torch_home(home: Home) -> Home:
    """The same folder with the network as torch saves it: tiny.pt, tiny.safetensors."""
    import torch
    from safetensors.torch import save_file

    state = {name: torch.from_numpy(array) for name, array in tiny_weights().items()}
    torch.save(state, home / "tiny.pt")
    save_file(state, home / "tiny.safetensors")
    return home


@pytest.fixture(scope="session")
def built(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.onnx built by the program itself, in a process of its own; many tests look at it."""
    output = tmp_path_factory.mktemp("built") / "tiny.edgepack"
    evaluation = ["--evaluation", home / "evaluation.npz"]
    done = edgepack(*home.build("tiny.onnx", *evaluation, "--output", str(output)))
    assert done.returncode == 0, done.stderr
    return output


@dataclass(frozen=True)
class Answer:
    """What one command ended with.

    Attributes:
        status: the exit status.
        document: what stood on stdout, as JSON; None where there was nothing.
        stderr: what the user read.
    """

    status: int
    document: Any
    stderr: str

    @property
    def code(self) -> str:
        """The error's code; "" where there was none."""
        return str(self.document["error"]["code"]) if self.failed else ""

    @property
    def failed(self) -> bool:
        return isinstance(self.document, dict) and "error" in self.document

    def stage(self, name: str) -> dict[str, Any]:
        """The ledger's record of a stage."""
        return next(r for r in self.document["ledger"] if r["stage"] == name)


def edgepack(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "edgepack", *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )


def ask(*arguments: str, env: dict[str, str] | None = None) -> Answer:
    """Run a command with `--json` in this process, which has torch imported already.

    A fault of edgepack's own fails the test here: no traceback passes for an error.
    """
    result = CliRunner().invoke(cli, [*arguments, "--json"], env=env, catch_exceptions=False)
    assert "Traceback" not in result.stderr, result.stderr
    return Answer(result.exit_code, one_document(result.stdout), result.stderr)


def render_text(render: Callable[[Mapping[str, Any], Console], None], document: Any) -> str:
    """Return the text that a command prints without `--json`."""
    file = io.StringIO()
    render(document, Console(file=file, width=160))
    return file.getvalue()


def one_document(stdout: str) -> Any:
    """The single JSON document that stands on stdout; None where there is nothing."""
    return json.loads(stdout) if stdout.strip() else None


def build(arguments: Sequence[str], output: Path, *options: str) -> Answer:
    """A build in this process that must succeed."""
    answer = ask(*arguments, "--output", str(output), *options)
    assert answer.status == 0, answer.stderr
    assert output.is_file()
    return answer


def digest_of(path: Path) -> str:
    """The content digest of an intact bundle. Raises BundleError where it is not intact."""
    with Archive(str(path)) as archive:
        index = read_index(archive)
        check_all(archive, index)
        return index.content_digest


def entry(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
