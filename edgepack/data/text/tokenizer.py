"""Tokenizers as people have them, turned into the conversion that bundles carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import DataError, missing_package
from edgepack.runtime.plain import read_plain
from edgepack.runtime.preprocess import text as runtime_text
from edgepack.runtime.preprocess.text import Field, Padding, Text
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
# Files that hold a tokenizer without its rules, which only their own class knows.
_VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "merges.txt")
MAX_TOKENIZER = 256 << 20
MAX_CONFIG = 16 << 20
# transformers stores 1e30 for a tokenizer without a limit.
UNLIMITED = 1_000_000
# Names of inputs, by the numbers of an encoding that fill them. The first are those of
# transformers, the others those of older exports.
NAMES: Mapping[str, tuple[str, ...]] = {
    "ids": ("input_ids", "ids", "tokens", "input", "input_word_ids", "input.1"),
    "attention_mask": ("attention_mask", "mask", "input_mask"),
    "type_ids": ("token_type_ids", "segment_ids", "type_ids", "input_type_ids"),
}
# Networks whose first position follows the number of the padding token: 514 positions, of which
# 0 and 1 are never used, take 512 tokens.
_OFFSET_POSITIONS = frozenset(
    (
        "roberta",
        "xlm-roberta",
        "camembert",
        "longformer",
        "mpnet",
        "xlm-roberta-xl",
        "data2vec-text",
    )
)


@dataclass(frozen=True)
class TextOptions:
    """Table [text] of a manifest; absent settings are empty.

    Attributes:
        tokenizer: path of a tokenizer.json, or of the folder that holds it.
        max_length: largest number of tokens of a sample.
        padding: "none" or "max_length".
        truncation: the end of a long text that is cut off, "right" or "left".
        text: column of the texts in a table.
        text_pair: column of the second texts.
        label: column of the labels.
    """

    tokenizer: str = ""
    max_length: int | None = None
    padding: str = ""
    truncation: str = ""
    text: str = ""
    text_pair: str = ""
    label: str = ""


@dataclass(frozen=True)
class _Limit:
    """Largest number of tokens, and the file or setting that it is from."""

    tokens: int
    origin: str


def read_text(path: Path, inputs: tuple[Tensor, ...], options: TextOptions) -> Text:
    """Read a tokenizer, and its limits, for a model.

    Args:
        path: a tokenizer.json, which is taken as it is, or a folder that `save_pretrained` wrote.
        inputs: of the model.
        options: the user's, which replace those of the folder.

    Raises:
        DataError: tokenizer-missing, tokenizer-unreadable, text-inputs, text-max-length,
            text-padding.
    """
    folder = path
    if not path.is_dir():
        folder = path.parent
    file = path if path.is_file() else path / TOKENIZER
    contents = _read_file(file)
    tokenizer = _open(contents, file)
    config: Mapping[str, object] = {}
    if path.is_dir():
        config = _read_config(folder / "tokenizer_config.json")
    fields = match_fields(inputs)
    limit = _find_limit(folder, path.is_dir(), config, tokenizer, options, inputs)
    fixed = fixed_length(inputs)
    # A dynamic axis needs no padding; a model of exactly 128 tokens gets every text at 128.
    mode = options.padding or ("none" if fixed is None else "max_length")
    padding = None
    if mode == "max_length":
        padding = _find_padding(folder, config, tokenizer, file)
    if fixed is not None and (limit.tokens != fixed or padding is None):
        raise DataError(
            "text-max-length",
            "the texts do not get the model's length",
            why=f"the model takes exactly {fixed} tokens; the texts get at most {limit.tokens}, "
            f"with padding = {mode!r} ({limit.origin})",
            hint=f'in the manifest: [text] max_length = {fixed}, padding = "max_length"',
        )
    side = options.truncation or str(config.get("truncation_side", "right"))
    # The same document without its indentation, which is a third of its size.
    contents = json.dumps(json.loads(contents), ensure_ascii=False, separators=(",", ":")).encode()
    return Text(contents, fields, limit.tokens, side, padding)


def describe(text: Text) -> str:
    """Return the limits of a conversion in words, for the ledger."""
    inputs = ", ".join(field.name for field in text.fields)
    padding = "no padding"
    if text.padding is not None:
        padding = f"padded to {text.max_length} with {text.padding.token}"
    return (
        f"texts become {inputs}: at most {text.max_length} tokens, longer texts are cut at the "
        f"{text.truncation_side}; {padding}"
    )


def match_fields(inputs: Sequence[Tensor]) -> tuple[Field, ...]:
    """Match a model's inputs to the numbers of an encoding, by their names.

    A model's only input takes the ids, whatever its name.

    Raises DataError `text-inputs`.
    """
    fields = []
    for tensor in inputs:
        # input_ids -> "ids", segment_ids -> "type_ids", pixel_values -> None
        field = _match_name(tensor.name)
        if len(inputs) == 1:
            field = "ids"
        shaped = tensor.rank == 2 and tensor.dtype in runtime_text.DTYPES
        if field is None or not shaped:
            raise DataError(
                "text-inputs",
                f"texts cannot fill the model's input {tensor.name}",
                why=f"the model's inputs: {', '.join(map(str, inputs))}",
                hint="a tokenizer fills integers of the shape (batch, tokens), named input_ids, "
                "attention_mask or token_type_ids; for other inputs write your own function: "
                '[preprocess] code = "preprocess.py:prepare"',
            )
        fields.append(Field(tensor.name, field, tensor.dtype))
    if all(field.field != "ids" for field in fields):
        raise DataError(
            "text-inputs",
            "none of the model's inputs takes the tokens of a text",
            why=f"the model's inputs: {', '.join(map(str, inputs))}",
            hint="name one of them input_ids",
        )
    return tuple(fields)


def _match_name(name: str) -> str | None:
    for field, names in NAMES.items():
        if name in names:
            return field
    return None


def fixed_length(inputs: Sequence[Tensor]) -> int | None:
    """Return the number of tokens that a model takes; None if its axis is dynamic."""
    for tensor in inputs:
        if tensor.rank == 2 and isinstance(tensor.shape[1], int):
            return tensor.shape[1]
    return None


def _read_file(path: Path) -> bytes:
    try:
        return read_plain(path, MAX_TOKENIZER)
    except FileNotFoundError as error:
        folder = path.parent
        others = [name for name in _VOCABULARIES if (folder / name).exists()]
        why = "it does not exist"
        if others:
            why += f"; {', '.join(others)} alone does not say how texts are split"
        raise DataError(
            "tokenizer-missing",
            f"there is no tokenizer at {path}",
            why=why,
            hint="write it from the tokenizer of the training, in Python:\n"
            f'AutoTokenizer.from_pretrained("your/model").save_pretrained("{folder}")\n'
            'or name the file in the manifest: [text] tokenizer = "tokenizer.json"',
        ) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _open(contents: bytes, path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package("tokenizers", "text", "Reading texts") from error
    try:
        return Tokenizer.from_str(contents.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise _unreadable(path, str(error)) from error


def _read_config(path: Path) -> Mapping[str, object]:
    """Return a configuration; empty if there is none."""
    if not path.exists():
        return {}
    try:
        document = json.loads(read_plain(path, MAX_CONFIG))
        if not isinstance(document, dict):
            raise TypeError(f"it is a {type(document).__name__}, not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    return document


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        "tokenizer-unreadable",
        f"{path} cannot be read",
        why=why,
        hint="save the tokenizer again with save_pretrained",
    )


def _find_limit(
    folder: Path,
    whole: bool,
    config: Mapping[str, object],
    tokenizer: Tokenizer,
    options: TextOptions,
    inputs: tuple[Tensor, ...],
) -> _Limit:
    """Return the largest number of tokens.

    The user's, else the model's fixed length, else the smallest limit of the folder, else that of
    tokenizer.json. Raises DataError `text-max-length` if there is none.
    """
    # A DistilBERT with 512 positions, whose tokenizer was saved with model_max_length 64, takes 64.
    if options.max_length is not None:
        return _Limit(options.max_length, "max_length of the manifest")
    fixed = fixed_length(inputs)
    if fixed is not None:
        return _Limit(fixed, "the model's input")
    limits = []
    if whole:
        sentences = _read_config(folder / "sentence_bert_config.json")
        limits = [
            (config.get("model_max_length"), "tokenizer_config.json"),
            (sentences.get("max_seq_length"), "sentence_bert_config.json"),
            (_count_positions(_read_config(folder / "config.json")), "config.json"),
        ]
    usable = []
    for tokens, origin in limits:
        if isinstance(tokens, (int, float)) and 0 < tokens < UNLIMITED:
            usable.append(_Limit(int(tokens), origin))
    if usable:
        return min(usable, key=lambda limit: limit.tokens)
    if tokenizer.truncation is not None:
        return _Limit(tokenizer.truncation["max_length"], TOKENIZER)
    raise DataError(
        "text-max-length",
        "the largest number of tokens is unknown",
        why="neither the tokenizer nor the model's input has a limit",
        hint="set that of the training in the manifest: [text] max_length = 128",
    )


def _count_positions(config: Mapping[str, object]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    # RoBERTa has 514 positions and the padding token 1: 514 - (1 + 1) = 512 tokens.
    if config.get("model_type") in _OFFSET_POSITIONS:
        pad = config.get("pad_token_id")
        positions -= (pad if isinstance(pad, int) else 1) + 1
    return positions


def _find_padding(
    folder: Path, config: Mapping[str, object], tokenizer: Tokenizer, path: Path
) -> Padding:
    """Return the padding token of a tokenizer. Raises DataError `text-padding` if it has none."""
    stored = tokenizer.padding or {}
    special = _read_config(folder / "special_tokens_map.json")
    tokens = [
        _read_token(config.get("pad_token")),
        _read_token(special.get("pad_token")),
        _read_token(stored.get("pad_token")),
        *("[PAD]", "<pad>"),
    ]
    side = str(config.get("padding_side") or stored.get("direction") or "right").lower()
    for token in tokens:
        # The first candidate that the vocabulary has; "" of an absent setting is in none.
        number = tokenizer.token_to_id(token)
        if number is not None:
            return Padding(token, number, int(stored.get("pad_type_id", 0)), side)
    raise DataError(
        "text-padding",
        "the tokenizer has no padding token",
        why=f"{path.name} has neither [PAD] nor <pad>",
        hint='leave the texts at their own lengths: [text] padding = "none"',
    )


def _read_token(value: object) -> str:
    """Return the text of a special token, which is stored as text or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
