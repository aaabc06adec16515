"""Conversion of a text to the ids, mask and segments of a model, with its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Tuple

import numpy as np

from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from ..strict_json import Reader
    from .protocol import ReadFile

# Numbers of an encoding that a model may take, by the attribute of `tokenizers.Encoding`.
FIELDS = ("ids", "attention_mask", "type_ids")
SIDES = ("left", "right")
DTYPES = ("int32", "int64")
# Limit against absurd allocations.
MAX_LENGTH = 1 << 20
# Longest text in bytes: a tokenizer reads all of it before it truncates, at about 1 MB a second.
MAX_BYTES = 1 << 20
ENTRY = "preprocess/tokenizer.json"
# Python 3.8 has no wheel of newer versions, and old releases of pip would compile one from source.
REQUIREMENTS = (
    "tokenizers>=0.19,<0.21; python_version < '3.9'",
    "tokenizers>=0.19; python_version >= '3.9'",
)


@dataclass(frozen=True)
class Field:
    """Input of the model, and the numbers of an encoding that fill it.

    Attributes:
        name: of the input.
        field: one of FIELDS.
        dtype: numpy's name of the input's element type.
    """

    name: str
    field: str
    dtype: str


@dataclass(frozen=True)
class Padding:
    """Padding to the maximum length.

    Attributes:
        token: of the vocabulary.
        id: its number.
        type_id: the segment of padded positions.
        side: "left" or "right".
    """

    token: str
    id: int
    type_id: int
    side: str


@dataclass(frozen=True)
class Text:
    """Conversion of a text, or of a pair of texts, to a feed.

    Attributes:
        tokenizer: contents of tokenizer.json.
        fields: the model's inputs.
        max_length: largest number of tokens, with the special ones; longer texts are truncated.
        truncation_side: the end of a long text that is cut off, "left" or "right".
        padding: to the maximum length; None leaves a text at its own length.
        pair: True if a sample is two texts.
    """

    tokenizer: bytes
    fields: Tuple[Field, ...]
    max_length: int
    truncation_side: str = "right"
    padding: Optional[Padding] = None
    pair: bool = False

    @property
    def takes_text(self) -> bool:
        """True: a string is a sample."""
        return True

    @property
    def least_db(self) -> Optional[float]:
        """None: every version of tokenizers makes the same tokens of one file."""
        return None

    @property
    def noise(self) -> float:
        """0: the SNR alone counts."""
        return 0.0

    @classmethod
    def read(cls, reader: Reader, read_file: ReadFile) -> Text:
        """Read the document of `to_json`. Raises the reader's error if it is not valid."""
        max_length = reader.get("max_length", int)
        if not 0 < max_length <= MAX_LENGTH:
            raise reader.fault(f"max_length is {max_length}")
        padding = None
        if reader.value.get("padding") is not None:
            padding = _read_padding(reader.at("padding"))
        return cls(
            tokenizer=read_file(reader.get("tokenizer", str)),
            fields=reader.each("fields", _read_field),
            max_length=max_length,
            truncation_side=_read_choice(reader, "truncation_side", SIDES),
            padding=padding,
            pair=reader.get("pair", bool),
        )

    def to_json(self) -> Dict[str, object]:
        """Return the document in `bundle.json`."""
        fields = []
        for field in self.fields:
            fields.append({"name": field.name, "field": field.field, "dtype": field.dtype})
        padding = self.padding
        return {
            "kind": "text",
            "tokenizer": ENTRY,
            "fields": fields,
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
            "padding": None if padding is None else dict(vars(padding)),
            "pair": self.pair,
        }

    def files(self) -> Mapping[str, bytes]:
        """Return the tokenizer's file."""
        return {ENTRY: self.tokenizer}

    def requirements(self) -> Tuple[str, ...]:
        """Return the requirements of tokenizers."""
        return REQUIREMENTS

    def versions(self) -> Dict[str, str]:
        """Return the version of tokenizers."""
        _import_tokenizers()
        from tokenizers import __version__

        return {"tokenizers": __version__}

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return the feed of one sample: UTF-8, or for a pair what `join_pair` returns.

        Raises:
            InputError: text-encoding, text-pair, text-empty, text-too-long, text-unreadable.
            DeviceError: package-missing, tokenizer-unreadable.
        """
        # With max_length 4 and padding, "film" gives input_ids [[101, 2143, 102, 0]] and
        # attention_mask [[1, 1, 1, 0]].
        encoding = self.encode(data, name)
        feed = {}
        for field in self.fields:
            numbers: List[int] = getattr(encoding, field.field)
            feed[field.name] = np.array([numbers], dtype=field.dtype)
        return feed

    def encode(self, data: bytes, name: str = "") -> Encoding:
        """Return the tokens of one sample. Raises as `prepare` does."""
        name = name or "the text"
        first, second = self._split(data, name)
        tokenizer = _open_tokenizer(self)
        try:
            encoding = tokenizer.encode(first, second)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise InputError(
                "text-unreadable",
                f"the model's tokenizer fails on {name}",
                why=str(error),
                hint="leave it out; if others fail, too, the tokenizer is damaged: build again",
            ) from error
        if not encoding.ids:
            raise InputError(
                "text-empty",
                f"{name} has no tokens",
                why="it is empty, or the tokenizer drops all of it",
                hint="remove it",
            )
        return encoding

    def _split(self, data: bytes, name: str) -> Tuple[str, Optional[str]]:
        if len(data) > MAX_BYTES:
            raise InputError(
                "text-too-long",
                f"{name} is too long",
                why=f"{len(data):,} bytes; at most {MAX_BYTES:,} are read",
                hint="cut it: the model sees no more than its first tokens or its last ones",
            )
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                "text-encoding",
                f"{name} is not UTF-8",
                why=str(error),
                hint="convert it: iconv -f latin1 -t utf-8 FILE",
            ) from error
        if not self.pair:
            return text, None
        try:
            first, second = json.loads(text)
            return first + "", second + ""
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                "text-pair",
                f"the model compares two texts, and {name} is not a pair",
                why=f"{type(error).__name__}: {error}",
                hint='pass a JSON list: ["FIRST", "SECOND"]',
            ) from error


def join_pair(first: str, second: str) -> bytes:
    """Return two texts as one sample: a JSON list, `["a text", "another"]`."""
    return json.dumps([first, second], ensure_ascii=False).encode()


def _import_tokenizers() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "package-missing",
            "texts need the package tokenizers",
            why=str(error),
            hint="python3 -m pip install tokenizers",
        ) from error


@lru_cache(maxsize=8)
def _open_tokenizer(text: Text) -> Tokenizer:
    _import_tokenizers()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text.tokenizer.decode("utf-8"))
        # The file may have limits of its own: those of the last call before it was saved.
        tokenizer.enable_truncation(text.max_length, direction=text.truncation_side)
        tokenizer.no_padding()
        padding = text.padding
        if padding is not None:
            tokenizer.enable_padding(
                direction=padding.side,
                pad_id=padding.id,
                pad_type_id=padding.type_id,
                pad_token=padding.token,
                length=text.max_length,
            )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # plain Exception, or a panic of Rust
        raise DeviceError(
            "tokenizer-unreadable",
            "the package tokenizers cannot read the model's tokenizer",
            why=str(error),
            hint="python3 BUNDLE info lists the version that the build used",
        ) from error
    return tokenizer


def _read_field(reader: Reader) -> Field:
    field = _read_choice(reader, "field", FIELDS)
    dtype = _read_choice(reader, "dtype", DTYPES)
    return Field(reader.get("name", str), field, dtype)


def _read_padding(reader: Reader) -> Padding:
    number, type_id = reader.get("id", int), reader.get("type_id", int)
    if not (0 <= number < 1 << 31 and 0 <= type_id < 1 << 31):
        raise reader.fault(f"its ids are {number} and {type_id}")
    side = _read_choice(reader, "side", SIDES)
    return Padding(reader.get("token", str), number, type_id, side)


def _read_choice(reader: Reader, key: str, choices: Tuple[str, ...]) -> str:
    value = reader.get(key, str)
    if value not in choices:
        raise reader.fault(f"{key} is {value!r}")
    return value
