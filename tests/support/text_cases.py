"""Texts, and a small tokenizer that is trained on the spot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

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
