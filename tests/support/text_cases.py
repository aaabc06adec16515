"""Texts, and a small tokenizer that is trained on the spot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import ask

# Of the sentiment that its number says: 0 unfavourable, 1 favourable.
SENTENCES = [
    ("a warm, funny and moving film", 1),
    ("the plot is thin and the jokes are old", 0),
    ("wonderful actors in a story that stays with you", 1),
    ("two hours that nobody gives me back", 0),
    ("beautifully shot, and never dull", 1),
    ("loud, long and pointless", 0),
    ("I love it", 1),
    ("I hate it", 0),
]
# Emoji, also of several code points, right to left, accents composed and not, controls, and texts
# that are empty or longer than any limit.
ODD_TEXTS = [
    "I love it \U0001f60d\U0001f525",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467 and flag \U0001f1e8\U0001f1ed",
    "\u0627\u0644\u0641\u064a\u0644\u0645 \u0631\u0627\u0626\u0639",
    "\u05d4\u05e1\u05e8\u05d8 \u05d4\u05d6\u05d4 \u05e0\u05d4\u05d3\u05e8",
    "\u202ereversed\u202c text",
    "caf\u00e9 and cafe\u0301, na\u00efve, \ufb01ne",
    "\u4e2d\u6587 \u8fd9\u90e8\u7535\u5f71\u5f88\u597d\u770b",
    "tab\tand\x00null and\x0bfeed\x85next",
    "[CLS] is a token [SEP], and so is [MASK]",
    "",
    "   ",
    "word " * 700,
    "x" * 9000,
    "It's 9.99 $ -- isn't it?!",
]


def train_tokenizer(folder: Path, *, lowercase: bool = True, limit: int | None = 16) -> Path:
    """Write the files of a WordPiece tokenizer, as `save_pretrained` does; return the folder."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=lowercase)
    texts = [text for text, _ in SENTENCES]
    trained.train_from_iterator(texts * 3, vocab_size=160, show_progress=False)
    options = {} if limit is None else {"model_max_length": limit}
    tokenizer = BertTokenizerFast(
        tokenizer_object=trained._tokenizer, do_lower_case=lowercase, **options
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_table(
    path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("text", "label")
) -> Path:
    """Write a .csv or, by its suffix, a .tsv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header)
        writer.writerows(rows)
    return path


MANIFEST = """schema = 1
name = "reviews"

[evaluation]
samples = "evaluation.csv"

[text]
tokenizer = "tokenizer"

[classes]
names = ["unfavourable", "favourable"]
"""


def text_onnx(tokenizer: Path) -> onnx.ModelProto:
    """Return a network that sums what the words of a text have said in SENTENCES."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    table = np.random.default_rng(0).normal(0, 0.01, (words.get_vocab_size(), 2))
    for text, label in SENTENCES:
        for number in words.encode(text).ids:
            table[number, label] += 1
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["1"]),
        helper.make_node("Cast", ["attention_mask"], ["2"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["2", "last"], ["3"]),
        helper.make_node("Mul", ["1", "3"], ["4"]),
        helper.make_node("ReduceSum", ["4", "one"], ["5"], keepdims=0),
        helper.make_node("MatMul", ["5", "w"], ["scores"]),
    ]
    constants = {
        "table": table.astype(np.float32),
        "last": np.array([-1]),
        "one": np.array([1]),
        "w": np.eye(2, dtype=np.float32),
    }
    inputs = []
    for name in ("input_ids", "attention_mask"):
        shape = ["batch", "sequence"]
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    graph = helper.make_graph(
        nodes,
        "reviews",
        inputs,
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of texts beside its model, manifest, tokenizer and samples."""
    home = tmp_path_factory.mktemp("reviews")
    train_tokenizer(home / "tokenizer")
    onnx.save(text_onnx(home / "tokenizer"), home / "reviews.onnx")
    (home / "reviews.toml").write_text(MANIFEST)
    names = ("unfavourable", "favourable")
    rows = [(text, names[label]) for text, label in SENTENCES]
    # Of different lengths, so that some share a batch and some do not.
    for text, label in SENTENCES:
        rows += [(f"{text} {text[:size]}", names[label]) for size in (5, 9, 20)]
    write_table(home / "evaluation.csv", rows)
    output = home / "reviews.edgepack"
    answer = ask(
        "build", str(home / "reviews.onnx"), "--manifest", str(home / "reviews.toml"),
        "--target", "cpu-fbgemm", "--chain", "none", "--no-emulate", "--latency", "none",
        "--output", str(output),
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    return output
