"""`run` on raw samples: texts, and files, the files of folders, or standard input."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..bundle.archive import Archive
from ..bundle.index import read_index
from ..errors import EdgepackError, InputError
from ..model import Model, open_model
from ..preprocess.feed import MAX_BYTES, read_sample, refuse_pair

if TYPE_CHECKING:
    from ..prediction import Prediction
    from ..preprocess.protocol import Preprocessing

STDIN = "-"
TABLES = (".csv", ".jsonl", ".tsv")
# Files of a data set beside its pictures and recordings: labels, annotations and lists.
_LABELS = (*TABLES, ".json", ".md", ".txt", ".xml", ".yaml", ".yml")


class Sample(NamedTuple):
    """Raw sample.

    Attributes:
        name: path of its file, "-" for standard input, or the text itself.
        data: the bytes, or a path; the error of a sample that cannot be read.
        key: kind of the name in JSON, "file" or "text".
    """

    name: str
    data: "bytes | Path | InputError"
    key: str = "file"


class Result(NamedTuple):
    """Result for one sample.

    Attributes:
        name: as in the sample.
        key: as in the sample.
        prediction: None if it could not be used.
        error: the reason for that.
    """

    name: str
    key: str
    prediction: Optional[Prediction]
    error: Optional[EdgepackError]

    def to_json(self) -> Dict[str, object]:
        """Return the prediction or the error as JSON values."""
        document: Dict[str, object] = {self.key: self.name}
        if self.prediction is not None:
            document.update(self.prediction.to_json())
        if self.error is not None:
            document["error"] = self.error.to_json()
        return document

    def lines(self) -> List[str]:
        """Return the name, and the likeliest classes or the outputs; nothing after an error."""
        if self.prediction is None:
            return []
        return [self.name, *("  " + line for line in self.prediction.lines())]


def predict_files(
    bundle: str, paths: Sequence[str], *, texts: Sequence[str] = (), pairs: Sequence[str] = (),
    top: int = 5, threads: int = 0, variant: str = "", stand_in: bool = False,
) -> Tuple[List[Result], Model]:  # fmt: skip
    """Run the model on texts, files, the files of folders, and standard input.

    A file that cannot be used does not keep the others from being answered. For a model of texts,
    every line of a file is a sample.

    Args:
        bundle: its path.
        paths: files and folders; "-" for standard input.
        texts: for a model of texts.
        pairs: the second of each of the texts, for a model of pairs.
        top: the maximum number of classes.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the variant to run; "" for the best that fits.
        stand_in: this is the build host and stands in for the device.

    Returns the results in order, and the model that ran. Raises InputError `text-unexpected` for
    texts if the model takes none.
    """
    with Archive(bundle) as archive:
        index = read_index(archive)
        model = open_model(archive, index, threads, stand_in=stand_in, variant=variant)
    takes_text = model.preprocessing is not None and model.preprocessing.takes_text
    if texts and not takes_text:
        raise InputError(
            "text-unexpected",
            "the model takes no texts",
            why="it was built on samples of another kind",
            hint="python3 BUNDLE info",
        )
    if pairs:
        refuse_pair(model.preprocessing, "python3 BUNDLE run --text TEXT")
    names = _list_files(paths, skipped=_list_skipped(model.preprocessing))
    samples = [*_pair_texts(texts, pairs), *_list_samples(names, takes_text)]
    results = []
    # One sample that cannot be read does not keep the others from their answers.
    for name, data, key in samples:
        if isinstance(data, InputError):
            results.append(Result(name, key, None, data))
            continue
        try:
            results.append(Result(name, key, model.predict(data, top=top), None))
        except InputError as error:
            results.append(Result(name, key, None, error))
    return results, model


def _pair_texts(texts: Sequence[str], pairs: Sequence[str]) -> Iterator[Sample]:
    """Yield texts, each joined with its second one if there are pairs."""
    if not pairs:
        for text in texts:
            # An argument that is not UTF-8 has its bytes as surrogates.
            yield Sample(text, text.encode("utf-8", "surrogateescape"), "text")
        return
    if len(texts) != len(pairs):
        raise InputError(
            "text-pair",
            "the texts do not form pairs",
            why=f"{len(texts)} of --text and {len(pairs)} of --text-pair",
            hint="python3 BUNDLE run --text FIRST --text-pair SECOND",
        )
    for first, second in zip(texts, pairs):
        joined = json.dumps([first, second], ensure_ascii=False)
        yield Sample(joined, joined.encode("utf-8", "surrogateescape"), "text")


def _list_samples(names: Iterable[str], by_line: bool) -> Iterator[Sample]:
    """Yield files, or the lines of files."""
    for name in names:
        try:
            data = _open(name)
            if not by_line:
                yield Sample(name, data)
                continue
            lines = _read_lines(data)
        except InputError as error:
            yield Sample(name, error)
            continue
        for line in lines:
            yield Sample(line.decode("utf-8", "replace"), line, "text")


def _read_lines(data: "bytes | Path") -> List[bytes]:
    """Return the lines of a file or of standard input, without their ends."""
    name = "standard input"
    if isinstance(data, Path):
        if data.suffix.lower() in TABLES:
            raise InputError(
                "text-table",
                f"{data.name} is a table, and each line of a file is taken for a text",
                why="tables are samples of a build",
                hint="store the texts in a .txt, one on each line",
            )
        if not data.exists():
            raise InputError(
                "samples-unreadable",
                f"the sample cannot be read: {data}",
                why="there is no such file",
                hint="a text itself follows --text: python3 BUNDLE run --text TEXT",
            )
        # Without a preprocessing: the name is a path, although the model takes texts.
        data, name = read_sample(None, data)
    if b"\0" in data:
        raise InputError(
            "text-binary",
            f"{name} is not a text file",
            why=f"byte {data.index(0)} is 0, as in recordings, pictures and UTF-16",
            hint="store the texts in UTF-8, one on each line: iconv -f utf-16 -t utf-8 FILE",
        )
    lines = data.split(b"\n")
    # A final newline begins no further text.
    if not lines[-1]:
        lines.pop()
    return [line[:-1] if line.endswith(b"\r") else line for line in lines]


def _list_skipped(preprocessing: Optional[Preprocessing]) -> Tuple[str, ...]:
    """Return suffixes of files in folders that are not samples of this kind of model."""
    if preprocessing is None or preprocessing.to_json()["kind"] not in ("picture", "audio"):
        return ()
    return _LABELS


def _list_files(paths: Sequence[str], skipped: Tuple[str, ...]) -> Iterator[str]:
    """Yield files, and in place of a folder the files in it, sorted.

    Of a folder hidden files are skipped, and those with one of the suffixes in `skipped`.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and not name.lower().endswith(skipped):
                    yield os.path.join(folder, name)


def _open(name: str) -> "bytes | Path":
    """Return the contents of standard input, or the path of a file. Raises InputError."""
    if name != STDIN:
        # A path is a file even where a string is a text.
        return Path(name)
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if not 0 < len(data) <= MAX_BYTES:
        raise InputError(
            "samples-unreadable",
            "standard input holds no sample",
            why=f"it has {len(data)} bytes; 1 to {MAX_BYTES:,} are read",
            hint="python3 BUNDLE run - < photo.jpg",
        )
    return data
