"""Bundles that are served, and the processes that serve them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from edgepack import bundle
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.preprocess.text import Field, Text
from edgepack.runtime.tensor import Tensor
from support.linear import linear_contents

CLASSES = ("red", "green", "blue")


@dataclass(frozen=True)
class Served:
    """A bundle that is being served.

    Attributes:
        url: of the page.
        port: of the server.
        process: that serves it.
    """

    url: str
    port: int
    process: subprocess.Popen[str]

    def ask(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; return the status, the body and the headers of the response."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path.lstrip("/"), body, names)
        try:
            with urlopen(request, timeout=60) as response:
                return response.status, response.read(), dict(response.headers)
        except HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    def json(self, path: str, body: bytes | None = None) -> dict:
        """Return the document of a response."""
        status, data, _ = self.ask(path, body)
        document = json.loads(data)
        assert status == 200, document
        return document

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def serve(path: Path, *arguments: str, python: str = sys.executable) -> Iterator[Served]:
    """Serve a bundle on a free port as a user would, and stop in the end."""
    with serving(python, str(path), "serve", "--port", "0", "--json", *arguments) as served:
        yield served


@contextmanager
def serving(*command: str) -> Iterator[Served]:
    """Run a command that serves a bundle and prints its address as JSON."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            document = json.loads(line)
            assert "error" not in document, document
            yield Served(document["url"], document["port"], process)
        finally:
            process.kill()


def infer_request(values: np.ndarray, name: str = "x") -> bytes:
    """Return a request of the protocol with one input in FP32."""
    entry = {
        "name": name, "shape": list(values.shape), "datatype": "FP32",
        "data": values.ravel().tolist(),
    }  # fmt: skip
    return json.dumps({"inputs": [entry]}).encode()


def colours_contents() -> bundle.Contents:
    """What goes into a bundle that tells which of three colours a picture has most of."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["colours"]),
            helper.make_node("Mul", ["colours", "eight"], ["scores"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(8), "eight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    feeds = np.random.default_rng(0).random((2, 1, 3, 8, 8), np.float32)
    scores = 8 * feeds.mean((3, 4))
    preprocessing, contents = Picture(resize=(8, 8), input="image"), linear_contents()
    return replace(
        contents,
        name="colours",
        inputs=[Tensor("image", "float32", ("batch", 3, 8, 8))],
        outputs=[Tensor("scores", "float32", ("batch", 3), "scores")],
        model=model.SerializeToString(deterministic=True),
        reference=[feeds],
        original=[scores],
        parts={"scores": [Part(None, (), float(scores.var()))]},
        preprocessing=preprocessing,
        requirements="\n".join((*preprocessing.requirements(), contents.requirements)),
        class_names=CLASSES,
    )


def words_contents(*, pair: bool = False) -> bundle.Contents:
    """What goes into a bundle that counts good and bad words, of a text or of two."""
    words = {"[UNK]": 0, "good": 1, "bad": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["values", "ids"], ["each"]),
            helper.make_node("ReduceSum", ["each", "axis"], ["scores"], keepdims=0),
        ],
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.float32([[0, 0], [0, 3], [3, 0]]), "values"),
            numpy_helper.from_array(np.int64([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    scores = np.float32([[[3, 3]]])
    return replace(
        linear_contents(),
        name="words",
        inputs=[Tensor("ids", "int64", ("batch", "length"))],
        outputs=[Tensor("scores", "float32", ("batch", 2), "scores")],
        model=model.SerializeToString(deterministic=True),
        reference=[np.int64([[[1, 2]]])],
        original=[scores],
        parts={"scores": [Part(None, (), 1.0)]},
        preprocessing=Text(
            tokenizer.to_str().encode(), (Field("ids", "ids", "int64"),), 16, pair=pair
        ),
        class_names=("unfavourable", "favourable"),
    )


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `colours_contents`."""
    path = tmp_path_factory.mktemp("colours") / "colours.edgepack"
    bundle.write(path, colours_contents())
    return path


@pytest.fixture(scope="session")
def served_colours(colours: Path) -> Iterator[Served]:
    """The bundle of colours behind its server."""
    with serve(colours) as served:
        yield served


@pytest.fixture(scope="session")
def served_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bundle that takes texts, behind its server."""
    path = tmp_path_factory.mktemp("words") / "words.edgepack"
    bundle.write(path, words_contents())
    with serve(path) as served:
        yield served


@pytest.fixture(scope="session")
def served_linear(linear_bundle: Path) -> Iterator[Served]:
    """A bundle that takes arrays alone, behind its server."""
    with serve(linear_bundle) as served:
        yield served
