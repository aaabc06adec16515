"""Texts become tokens exactly as transformers makes them, and tables give labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.data import Classes, TextOptions, lint, open_samples, read_text
from edgepack.data.samples import Batch
from edgepack.errors import DataError
from edgepack.runtime.preprocess.text import Text, join_pair
from edgepack.runtime.tensor import Tensor
from support.text_cases import ODD_TEXTS, SENTENCES, train_tokenizer, write_table

NAMES = ("input_ids", "attention_mask", "token_type_ids")
INPUTS = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in NAMES)
CLASSES = Classes(("unfavourable", "favourable"), "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def texts_of(folder: Path, **options: Any) -> Text:
    return read_text(folder, INPUTS, TextOptions(**options))


def batches_of(path: Path, text: Text, **options: Any) -> list[Batch]:
    return list(open_samples(str(path), INPUTS, preprocessing=text, **options).batches(4))


@pytest.mark.parametrize("padding", ["none", "max_length"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_odd_texts_have_the_tokens_that_transformers_gives_them(
    folder: Path, tokenizer: Any, padding: str, side: str
) -> None:
    text = texts_of(folder, padding=padding, truncation=side, max_length=12)
    tokenizer.truncation_side = side
    for sample in ODD_TEXTS:
        feed = text.prepare(sample.encode())
        expected = tokenizer(
            sample,
            padding=padding if padding == "max_length" else False,
            max_length=12,
            truncation=True,
            return_token_type_ids=True,
        )
        assert {name: array.tolist() for name, array in feed.items()} == {
            name: [expected[name]] for name in NAMES
        }, sample[:40]


def test_pairs_have_the_tokens_that_transformers_gives_them(folder: Path, tokenizer: Any) -> None:
    text = Text(**{**vars(texts_of(folder, max_length=12)), "pair": True})
    for first, second in zip(ODD_TEXTS, reversed(ODD_TEXTS), strict=True):
        feed = text.prepare(join_pair(first, second))
        tokenizer.truncation_side = "right"
        # In lists: called with two strings, transformers takes an empty second one for none.
        expected = tokenizer(
            [first], [second], max_length=12, truncation=True, return_token_type_ids=True
        )
        for name in NAMES:
            assert feed[name].tolist() == expected[name]


def test_the_folder_states_the_limits_and_the_manifest_replaces_them(folder: Path) -> None:
    text = texts_of(folder)
    assert (text.max_length, text.padding, text.truncation_side) == (16, None, "right")
    padded = texts_of(folder, max_length=9, padding="max_length")
    assert padded.padding is not None
    assert (padded.max_length, padded.padding.token, padded.padding.side) == (9, "[PAD]", "right")
    fixed = tuple(Tensor(name, "int32", ("batch", 10)) for name in NAMES[:2])
    text = read_text(folder, fixed, TextOptions())
    assert text.max_length == 10
    assert text.padding is not None
    assert [(field.name, field.dtype) for field in text.fields] == [
        ("input_ids", "int32"),
        ("attention_mask", "int32"),
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 14, "model_type": "bert"}, 14),
        # RoBERTa numbers its positions from 2.
        ({"max_position_embeddings": 14, "model_type": "roberta", "pad_token_id": 1}, 12),
        ({"max_position_embeddings": 40, "model_type": "bert"}, 16),
    ],
)
def test_the_smallest_limit_of_the_folder_holds(
    tmp_path: Path, folder: Path, config: dict[str, object], expected: int
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert texts_of(tmp_path).max_length == expected


def test_texts_of_one_length_share_batches_and_keep_their_labels(
    tmp_path: Path, folder: Path
) -> None:
    path = write_table(tmp_path / "a.csv", SENTENCES)
    text = texts_of(folder)
    seen = []
    for batch in batches_of(path, text):
        assert batch.labels is not None
        assert batch.raw is not None
        for row, data in enumerate(batch.raw):
            alone = text.prepare(data)
            for name in NAMES:
                np.testing.assert_array_equal(batch.inputs[name][row : row + 1], alone[name])
            seen.append((data.decode(), int(batch.labels[row])))
    assert sorted(seen) == sorted(SENTENCES)


def test_padded_texts_keep_their_order(tmp_path: Path, folder: Path) -> None:
    path = write_table(tmp_path / "a.csv", SENTENCES)
    batches = batches_of(path, texts_of(folder, padding="max_length"))
    assert [batch.count for batch in batches] == [4, 4]
    raw = [data.decode() for batch in batches for data in batch.raw or ()]
    assert raw == [text for text, _ in SENTENCES]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_of_any_form_has_pairs_and_named_labels(
    tmp_path: Path, folder: Path, suffix: str
) -> None:
    rows = [("a, b", 'said "no"', "favourable"), ("line\nbreak", "", "unfavourable")]
    path = tmp_path / f"a{suffix}"
    header = ("sentence1", "sentence2", "label")
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n\n")
    else:
        write_table(path, rows, header)
    batches = batches_of(path, texts_of(folder, padding="max_length"), classes=CLASSES)
    assert [batch.raw for batch in batches] == [[join_pair(a, b) for a, b, _ in rows]]
    assert batches[0].labels is not None
    assert batches[0].labels.tolist() == [1, 0]


def test_lines_of_a_text_file_are_samples(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\ntwo\u2028three\n".encode())
    batches = batches_of(path, texts_of(folder, padding="max_length"))
    assert [batch.raw for batch in batches] == [[b"one", b"", "two\u2028three".encode()]]
    assert batches[0].labels is None


def test_columns_of_other_names_are_named_in_the_manifest(tmp_path: Path, folder: Path) -> None:
    path = write_table(tmp_path / "a.csv", [("good", "4.5")], ("review", "stars"))
    columns = TextOptions(text="review", label="stars")
    (batch,) = batches_of(path, texts_of(folder), columns=columns)
    assert batch.labels is not None
    assert batch.labels.tolist() == [4.5]


@pytest.mark.parametrize(
    ("header", "warnings"),
    [
        (("text", "stars"), ['[text] label = "stars"']),
        (("text", "label"), []),
    ],
)
def test_labels_in_a_column_of_another_name_are_suspected(
    tmp_path: Path, folder: Path, header: tuple[str, str], warnings: list[str]
) -> None:
    rows = [(f"good {index}", str(index % 2)) for index in range(120)]
    path = write_table(tmp_path / "a.csv", rows, header)
    samples = open_samples(str(path), INPUTS, preprocessing=texts_of(folder))
    for report in (lint(None, samples, INPUTS), lint(samples, None, INPUTS)):
        found = [line for line in report.warnings if "labels" in line]
        assert len(found) == len(warnings)
        assert all(part in line for part, line in zip(warnings, found, strict=True))


def fault_of(path: Path, text: Text | None, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(open_samples(str(path), INPUTS, preprocessing=text, **options).batches(4))
    return caught.value.code


@pytest.mark.parametrize(
    ("contents", "code"),
    [
        (b"text,label\n", "samples-empty"),
        (b"words,label\na,1\n", "text-columns"),
        (b"text,label\na,1,2\n", "text-table"),
        (b"text,label\na\n", "text-table"),
        (b'text,label\n"a,1\n', "text-table"),
        (b"text,label\na,1\nb,\n", "samples-labels-count"),
        (b"text,label\na,bad\n", "classes-differ"),
        (b"text\ncaf\xe9\n", "text-encoding"),
    ],
)
def test_a_broken_table_is_refused(
    tmp_path: Path, folder: Path, contents: bytes, code: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(contents)
    assert fault_of(path, texts_of(folder), classes=CLASSES) == code


def test_a_class_of_many_samples_is_named_once(tmp_path: Path, folder: Path) -> None:
    path = write_table(tmp_path / "a.csv", [("a", "good"), ("b", "bad")] * 300, ("text", "label"))
    with pytest.raises(DataError) as caught:
        open_samples(str(path), INPUTS, preprocessing=texts_of(folder), classes=CLASSES)
    assert caught.value.code == "classes-differ"
    assert caught.value.why.startswith("good, bad in ")
    assert caught.value.hint.endswith('names = ["good", "bad"]')


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("[1]", "text-table"),
        ('{"text": 3}', "text-table"),
        ('{"text": "half a pair \\ud83d"}', "text-encoding"),
        ('{"text": "a", "label": "good"}', "classes-unknown"),
    ],
)
def test_a_broken_line_is_refused(tmp_path: Path, folder: Path, line: str, code: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    assert fault_of(path, texts_of(folder)) == code


def test_texts_need_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    path = write_table(tmp_path / "a.csv", SENTENCES)
    assert fault_of(path, None) == "text-preprocessing-missing"
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(DataError) as caught:
        texts_of(tmp_path)
    assert caught.value.code == "tokenizer-missing"
    assert "vocab.txt" in caught.value.why


def inputs_of(*specs: tuple[str, str, Sequence[int | str]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, tuple(shape)) for name, dtype, shape in specs)


@pytest.mark.parametrize(
    ("inputs", "options", "code"),
    [
        (inputs_of(("x", "float32", ("batch", "n"))), {}, "text-inputs"),
        (inputs_of(("attention_mask", "int64", ("b", "n")), ("y", "int64", ("b", "n"))), {},
         "text-inputs"),
        (inputs_of(("ids", "int64", ("b", 8))), {"max_length": 9}, "text-max-length"),
        (inputs_of(("ids", "int64", ("b", 8))), {"padding": "none"}, "text-max-length"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    folder: Path, inputs: tuple[Tensor, ...], options: dict[str, Any], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_text(folder, inputs, TextOptions(**options))
    assert caught.value.code == code


def test_a_tokenizer_without_a_limit_needs_one(tmp_path: Path) -> None:
    folder = train_tokenizer(tmp_path, limit=None)
    with pytest.raises(DataError) as caught:
        texts_of(folder)
    assert caught.value.code == "text-max-length"
    assert texts_of(folder / "tokenizer.json", max_length=8).max_length == 8
