"""`run` on raw samples: pictures in files and folders, or on standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..bundle.archive import Archive
from ..bundle.index import read_index
from ..errors import EdgepackError, InputError
from ..model import Model, open_model
from ..preprocess.feed import MAX_BYTES

if TYPE_CHECKING:
    from ..prediction import Prediction

STDIN = "-"


class Result(NamedTuple):
    """Result for one sample.

    Attributes:
        name: path of its file, or "-" for standard input.
        prediction: None if it could not be used.
        error: the reason for that.
    """

    name: str
    prediction: Optional[Prediction]
    error: Optional[EdgepackError]

    def to_json(self) -> Dict[str, object]:
        """Return the prediction or the error as JSON values."""
        document: Dict[str, object] = {"file": self.name}
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
    bundle: str, paths: Sequence[str], *, top: int = 5, threads: int = 0, variant: str = "",
    stand_in: bool = False,
) -> Tuple[List[Result], Model]:  # fmt: skip
    """Run the model on files, the files of folders, and standard input.

    A file that cannot be used does not keep the others from being answered.

    Args:
        bundle: its path.
        paths: files and folders; "-" for standard input.
        top: the maximum number of classes.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the variant to run; "" for the best that fits.
        stand_in: this is the build host and stands in for the device.

    Returns the results in order, and the model that ran.
    """
    with Archive(bundle) as archive:
        index = read_index(archive)
        model = open_model(archive, index, threads, stand_in=stand_in, variant=variant)
    results = []
    for name in _list_files(paths):
        try:
            results.append(Result(name, model.predict(_open(name), top=top), None))
        except InputError as error:
            results.append(Result(name, None, error))
    return results, model


def _list_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield files, and in place of a folder the files in it, sorted; hidden ones are skipped."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
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
