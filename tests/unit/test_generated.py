"""Inputs that are generated where there are no samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.data.fills import list_fills, list_sizes
from edgepack.errors import DataError
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source import load
from edgepack.source.tables import find_tables
from edgepack.spec import target
from edgepack.spec.tensors import Span, parse_axes
from edgepack.stages.generated import generate_samples

IDS = Tensor("input_ids", "int64", ("batch", "tokens"))
MASK = Tensor("attention_mask", "int64", ("batch", "tokens"))
SEGMENTS = Tensor("token_type_ids", "int64", ("batch", "tokens"))


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[Tensor], rank: int, **constants: object
) -> Path:
    """Write an ONNX file whose only output is `y`, of so many axes."""
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    values = [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.shape)) for t in inputs]
    tables = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *"abcd"[1:rank]])
    graph = helper.make_graph(nodes, "g", values, [output], tables)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def make_request(**options: object) -> Request:
    options.setdefault("model", Path("m.onnx"))
    return Request(  # type: ignore[arg-type]
        target=target.load("cpu-fbgemm"), output=Path("m.edgepack"), name="m", **options
    )


def generate(path: Path, inputs: tuple[Tensor, ...], **options: object) -> tuple[str, list[dict]]:  # type: ignore[type-arg]
    samples, text = generate_samples(make_request(**options), load(path), inputs, 4)
    return text, [dict(batch.inputs) for batch in samples.batches(1)]


def test_tokens_stay_inside_the_smallest_table_that_they_index(tmp_path: Path) -> None:
    node = helper.make_node
    path = save(
        tmp_path / "words.onnx",
        [
            node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32),
            node("Gather", ["words", "ids"], ["a"]),
            node("Gather", ["turned", "input_ids"], ["b"], axis=1),
            node("Transpose", ["b"], ["c"], perm=[1, 2, 0]),
            node("Add", ["a", "c"], ["y"]),
        ],
        [IDS],
        rank=3,
        words=np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32),
        turned=np.random.default_rng(1).normal(size=(4, 70)).astype(np.float32),
    )
    source = load(path)
    assert find_tables(source, (IDS,), {}) == {"input_ids": 70}
    text, feeds = generate(path, (IDS,), axes=parse_axes(["tokens=300"]))
    assert text == "input_ids (batch, 300): tokens in [0, 70)"
    drawn = np.concatenate([feed["input_ids"] for feed in feeds])
    assert drawn.shape == (4, 300)
    assert (drawn.min(), drawn.max()) == (0, 69)


def test_tables_of_a_torch_module_are_found_by_what_indexes_them(tmp_path: Path) -> None:
    import torch
    from torch import nn

    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Reader(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words, self.kinds = nn.Embedding(50, 8), nn.Embedding(3, 8)\n"
        "        self.places = nn.Parameter(torch.randn(40, 8))\n\n"
        "    def forward(self, ids, kind, mask):\n"
        "        places = torch.arange(ids.shape[1])\n"
        "        mixed = self.words(ids) + self.places[places] + self.kinds(kind)\n"
        "        return mixed * mask[..., None]\n"
    )
    namespace: dict[str, type[nn.Module]] = {}
    exec((tmp_path / "net.py").read_text(), namespace)
    torch.save(namespace["Reader"]().state_dict(), tmp_path / "net.pt")
    source = load(tmp_path / "net.pt", arch=f"{tmp_path / 'net.py'}:Reader")
    inputs = tuple(Tensor(name, "int64", ("batch", "tokens")) for name in ("ids", "kind", "mask"))
    feed = {tensor.name: np.ones((1, 12), np.int64) for tensor in inputs}
    assert find_tables(source, inputs, feed) == {"ids": 50, "kind": 3}
    # 128 tokens have no position among 40: 32 have.
    samples, text = generate_samples(make_request(), source, inputs, 4)
    assert text == (
        "ids (batch, 32): tokens in [0, 50); kind (batch, 32): tokens in [0, 3); "
        "mask (batch, 32): ones"
    )
    assert {tuple(batch.inputs["ids"].shape) for batch in samples.batches(1)} == {(1, 32)}


def test_other_values_are_tried_until_the_answers_are_finite(tmp_path: Path) -> None:
    inputs = (Tensor("x", "float32", ("batch", 64)),)
    path = save(tmp_path / "log.onnx", [helper.make_node("Log", ["x"], ["y"])], list(inputs), 2)
    text, feeds = generate(path, inputs)
    assert text == "x (batch, 64): values in [0, 1)"
    assert all(np.isfinite(np.log(feed["x"])).all() for feed in feeds)


def test_a_model_that_answers_nothing_is_refused_with_what_was_fed(tmp_path: Path) -> None:
    inputs = (Tensor("x", "float32", ("batch", "width")),)
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "x"], ["zero"]),
        node("Log", ["zero"], ["low"]),
        node("Add", ["low", "table"], ["y"]),
    ]
    table = np.zeros((1, 7), np.float32)
    path = save(tmp_path / "never.onnx", nodes, list(inputs), 2, table=table)
    with pytest.raises(DataError) as caught:
        generate(path, inputs)
    assert caught.value.code == "generated-refused"
    assert "on x (batch, 576): normal values" in caught.value.why
    assert "--axis width=SIZE" in caught.value.hint
    with pytest.raises(DataError) as caught:
        generate(path, inputs, axes={"width": Span.around(7)})
    assert "output 0 holds no finite value\n  on x (batch, 7)" in caught.value.why


def test_values_follow_from_the_role_of_an_input() -> None:
    roles = {
        "attention_mask": "ones", "key_padding_mask": "zeros", "token_type_ids": "zeros",
        "position_ids": "positions from 0", "sr": "16000", "past_key_values.0.key": "zeros",
        "lengths": "37", "flags": "integers in [0, 2)",
    }  # fmt: skip
    for name, text in roles.items():
        tensor = Tensor(name, "int64", ("batch", "tokens"))
        assert list_fills(tensor, None, 37)[0].text == text
    picture = Tensor("image", "uint8", ("batch", 3, "height", "width"))
    assert list_fills(picture, None, 1)[0].text == "integers in [0, 256)"


def test_sizes_follow_from_the_kind_of_an_input() -> None:
    picture = Tensor("image", "float32", ("batch", 3, "height", "width"))
    assert list_sizes((picture,), {})[0] == {"height": 224, "width": 224}
    assert list_sizes((picture,), {"height": 96})[1] == {"height": 96, "width": 64}
    speech = Tensor("audio", "float32", ("batch", "samples"))
    state = Tensor("state", "float32", (2, "batch", 128))
    assert list_sizes((speech, state), {})[0] == {"samples": 16000}
    signal, hidden = Tensor("x", "float32", ("batch", "t")), Tensor("h", "float32", (1, "n", 8))
    assert list_sizes((signal, hidden), {})[0] == {"t": 576, "n": 1}
    caches = Tensor("past.0", "float32", ("batch", 4, "past", 16))
    mask = Tensor("attention_mask", "int64", ("batch", "past + tokens"))
    assert list_sizes((IDS, mask, caches), {"past": 5})[0] == {
        "tokens": 128, "past": 5, "past + tokens": 133,
    }  # fmt: skip
    # Nothing to vary: one trial.
    assert list_sizes((Tensor("x", "float32", ("batch", 8)),), {}) == [{}]


def test_a_single_size_of_an_axis_leaves_its_range_open() -> None:
    assert parse_axes(["tokens=128"])["tokens"] == Span(1, 128, 512, assumed=True)
    assert parse_axes(["tokens=1:128:256"])["tokens"] == Span(1, 128, 256)
