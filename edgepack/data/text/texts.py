"""Samples from texts: one a line, or a table of texts and labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from edgepack.data.fit import check_dtype, check_feed, shapes_of
from edgepack.data.labels import read_labels
from edgepack.data.layouts.class_names import Classes
from edgepack.data.raw.prepare import prepare, read_file
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.data.text.tokenizer import TextOptions
from edgepack.errors import DataError
from edgepack.listing import join_names
from edgepack.runtime.errors import InputError
from edgepack.runtime.preprocess.code import Code
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.preprocess.text import Text, join_pair
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

SUFFIXES = (".csv", ".jsonl", ".tsv", ".txt")
# Columns by their usual names, first those of the documentation, then those of GLUE.
TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question1")
PAIR_COLUMNS = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL_COLUMNS = ("label", "labels", "score", "class")
# csv refuses a cell of more characters; a review may be longer than its default of 128 Ki.
MAX_CELL = 1 << 26


@dataclass(frozen=True)
class Row:
    """Text, or pair of texts, of a file.

    Attributes:
        data: as `Text.prepare` takes it.
        label: as the file has it; None without one.
        where: file and line.
    """

    data: bytes
    label: object
    where: str


def open_texts(
    path: Path,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    *,
    origin: str,
    columns: TextOptions | None = None,
    classes: Classes | None = None,
) -> SampleStream:
    """Open the texts of a file.

    Texts are padded to their maximum length, or keep their own. In the second case they are read
    in the order of their lengths, since only texts of one length can share a batch.

    Args:
        path: a `.txt` with one text per line, or a `.csv`, `.tsv` or `.jsonl` with a column `text`
            and optionally `text_pair` and `label`.
        inputs: the model's inputs.
        preprocessing: conversion of a text to these inputs: a `Text`, or a `Code`.
        origin: description of the source for the report.
        columns: names of the columns.
        classes: of the model, by whose names labels may call them.

    Raises:
        DataError: the file cannot be read, has no such columns, or its labels are not valid.
    """
    rows, paired, unread = _read_rows(path, columns or TextOptions())
    if not rows:
        raise DataError(
            "samples-empty",
            f"{path.name} has no texts",
            why="it has no lines",
            hint="check the script that wrote it",
        )
    classes = classes or Classes()
    labels = read_labels([row.label for row in rows], classes, path.name)
    order: Sequence[tuple[int, int]] = [(0, index) for index in range(len(rows))]
    notes: tuple[str, ...] = ()
    constants: list[str] = []
    if isinstance(preprocessing, Text):
        # A mask is all ones for texts without padding: a constant input that is not suspicious.
        constants = [field.name for field in preprocessing.fields if field.field != "ids"]
        preprocessing = replace(preprocessing, pair=paired)
        order, truncated = _order_rows(rows, preprocessing)
        if truncated:
            notes = (
                f"{truncated:,} of {len(rows):,} texts in {path.name} are longer, and are cut",
            )
    elif isinstance(preprocessing, Code):
        preprocessing = replace(preprocessing, takes_text=True)
    else:
        raise _missing_tokenizer(path)
    return SampleStream(
        f"{origin} ({len(rows):,} texts)",
        partial(_read_pieces, rows, order, labels, inputs, preprocessing),
        exact_batch(inputs, origin),
        notes,
        preprocessing=preprocessing,
        class_names=classes.names,
        constants=frozenset(constants),
        unlabelled="" if labels is not None else _describe_unread(unread, path.name),
    )


def _describe_unread(columns: Sequence[str], name: str) -> str:
    """Return a sentence on the columns that were not read; empty if there are none."""
    if not columns:
        return ""
    return (
        f"{name} gives no labels; columns that are not read: {join_names(columns, 5)}; "
        f'[text] label = "{columns[0]}" in the manifest takes labels from there'
    )


def _missing_tokenizer(path: Path) -> DataError:
    return DataError(
        "text-preprocessing-missing",
        f"there is no tokenizer for the texts in {path.name}",
        why="the model has none of its own, and the manifest names none",
        hint='name it in the manifest: [text] tokenizer = "tokenizer.json"',
    )


def _read_pieces(
    rows: Sequence[Row],
    order: Sequence[tuple[int, int]],
    labels: np.ndarray | None,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing,
    size: int,
) -> Iterator[Piece]:
    """Yield the texts, as many of one length as there are in a row, at most `size` at a time."""
    for length, group in _group(order, size):
        # Of unknown length, 0, each text may have its own.
        step = len(group) if length else 1
        for start in range(0, len(group), step):
            yield _make_piece(rows, group[start : start + step], labels, inputs, preprocessing)


def _make_piece(
    rows: Sequence[Row],
    group: list[int],
    labels: np.ndarray | None,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing,
) -> Piece:
    feeds, raw = [], []
    for index in group:
        row = rows[index]
        feed = prepare(preprocessing, row.data, row.where)
        for tensor in inputs:
            check_dtype(feed[tensor.name].dtype, tensor, row.where)
        check_feed(shapes_of(feed), inputs, row.where, any_batch=True)
        feeds.append(feed)
        raw.append(row.data)
    arrays = {}
    for tensor in inputs:
        # Feeds of (1, 12) become a batch of (size, 12): all texts of a group have one length.
        arrays[tensor.name] = np.concatenate([feed[tensor.name] for feed in feeds])
    group_labels = None if labels is None else labels[group]
    return Piece(arrays, group_labels, len(group), divisible=True, raw=raw)


def _order_rows(rows: Sequence[Row], text: Text) -> tuple[list[tuple[int, int]], int]:
    """Return length and index of each text in reading order, and the number that are truncated."""
    # Texts of 9, 5 and 9 tokens are read as (5, 1), (9, 0), (9, 2). With padding all are of one
    # length, and keep their order.
    order, truncated = [], 0
    for index, row in enumerate(rows):
        length, whole = _measure(text, row)
        order.append((length, index))
        truncated += not whole
    return sorted(order), truncated


def _measure(text: Text, row: Row) -> tuple[int, bool]:
    """Return the number of tokens of a text, and False if it is truncated."""
    try:
        encoding = text.encode(row.data, row.where)
    except InputError as error:
        raise DataError(error.code, error.what, why=error.why, hint=error.hint) from error
    return len(encoding.ids), not encoding.overflowing


def _group(order: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, list[int]]]:
    """Yield a length and the indices of texts of that length, at most `size` at a time."""
    for length, run in groupby(order, key=itemgetter(0)):
        indices = [index for _, index in run]
        for start in range(0, len(indices), size):
            yield length, indices[start : start + size]


def _read_rows(path: Path, options: TextOptions) -> tuple[list[Row], bool, list[str]]:
    """Return the rows of a file, True if they are pairs, and the columns that were not read."""
    contents = read_file(path)
    try:
        # Spreadsheets begin a .csv with a byte order mark.
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "text-encoding",
            f"{path.name} is not UTF-8",
            why=str(error),
            hint=f"convert it: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    if path.suffix.lower() == ".txt":
        return _read_lines(text, path.name), False, []
    if path.suffix.lower() == ".jsonl":
        records = _read_json_lines(text, path.name)
    else:
        records = _read_table(text, path)
    return _convert_records(records, path.name, options)


def _read_lines(text: str, name: str) -> list[Row]:
    # Not `splitlines`, which splits at form feeds and Unicode separators too.
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        rows.append(Row(line.removesuffix("\r").encode(), None, f"{name}, line {number}"))
    return rows


Record = tuple[int, Mapping[str, object]]


def _read_json_lines(text: str, name: str) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("it is not an object")
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                "text-table",
                f"{name}, line {number} is not a JSON object",
                why=str(error),
                hint='write one object per line: {"text": "...", "label": 0}',
            ) from error
        records.append((number, record))
    return records


def _read_table(text: str, path: Path) -> list[Record]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    limit = csv.field_size_limit(MAX_CELL)
    records: list[Record] = []
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for record in table:
            # DictReader stores the cells beyond the header under None.
            if None in record or None in record.values():
                raise ValueError(f"line {table.line_num} does not have the columns of the header")
            records.append((table.line_num, record))
    except (csv.Error, ValueError) as error:
        raise DataError(
            "text-table",
            f"{path.name} is not a table",
            why=str(error),
            hint="the first line names the columns: text,label; a text with a comma or a line "
            'break is in quotes, and a quote in it is doubled: "He said ""no""."',
        ) from error
    finally:
        csv.field_size_limit(limit)
    return records


def _convert_records(
    records: Sequence[Record], name: str, options: TextOptions
) -> tuple[list[Row], bool, list[str]]:
    if not records:
        return [], False, []
    columns = list(records[0][1])
    text = _find_column(columns, options.text, TEXT_COLUMNS, name, required=True)
    pair = _find_column(columns, options.text_pair, PAIR_COLUMNS, name)
    label = _find_column(columns, options.label, LABEL_COLUMNS, name)
    rows = []
    for number, record in records:
        where = f"{name}, line {number}"
        first = _get_text(record, text, where)
        data = _encode(first, where)
        if pair:
            data = join_pair(first, _get_text(record, pair, where))
        # An empty cell would otherwise become a class of its own.
        value = record.get(label) if label else None
        if label and (value is None or value == ""):
            raise DataError(
                "samples-labels-count",
                f"{where} has no label",
                why=f"its column {label} is empty",
                hint="label all texts or none",
            )
        rows.append(Row(data, value, where))
    return rows, bool(pair), [column for column in columns if column not in (text, pair, label)]


def _find_column(
    columns: Sequence[str], name: str, usual: Sequence[str], file: str, *, required: bool = False
) -> str:
    """Return the column of a name, or else of a usual one; "" if there is none."""
    if name and name in columns:
        return name
    if not name:
        for candidate in usual:
            if candidate in columns:
                return candidate
        if not required:
            return ""
    near = nearest(name or usual[0], columns)
    hint = f'name the column in the manifest: [text] {usual[0]} = "{near or columns[0]}"'
    raise DataError(
        "text-columns",
        f"{file} has no column {name or usual[0]}",
        why=f"its columns: {', '.join(columns)}",
        hint=hint,
    )


def _get_text(record: Mapping[str, object], column: str, where: str) -> str:
    value = record.get(column)
    if isinstance(value, str):
        return value
    raise DataError(
        "text-table",
        f"{where} has no text",
        why=f"its {column} is {value!r}",
        hint="write a string; an empty text is an empty string",
    )


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "text-encoding",
            f"{where} is not valid Unicode",
            why=str(error),
            hint="half of a surrogate pair, such as \\ud83d alone, is not a character",
        ) from error
