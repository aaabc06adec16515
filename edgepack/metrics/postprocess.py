"""Postprocess of the user's: decodes a model's outputs into one result for each sample."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from edgepack.data.python.function import load_function
from edgepack.errors import DataError, EdgepackError, MetricError
from edgepack.metrics.digest import digest_function


@dataclass(frozen=True)
class Postprocess:
    """Function that decodes the outputs of a batch.

    Attributes:
        function: takes the outputs of a batch by name, and returns a list with one result for each
            sample.
        names: of the model's outputs, in order.
        origin: the function as the user stated it, for errors.
        digest: SHA-256 of its code, for the keys of cached results.
    """

    function: Callable[[Mapping[str, np.ndarray]], Sequence[object]]
    names: tuple[str, ...]
    origin: str
    digest: str

    def decode(self, outputs: Sequence[np.ndarray], count: int = -1) -> list[object]:
        """Return the results of a batch of `count` samples; any number of them for -1.

        Raises MetricError `postprocess-failed` or `postprocess-result`.
        """
        # Copies, since the collected arrays are read-only and those of a device are not.
        named = {name: np.array(array) for name, array in zip(self.names, outputs, strict=True)}
        try:
            results: object = self.function(named)
        except EdgepackError:
            raise
        except Exception as error:  # the user's function may raise anything
            frames = traceback.extract_tb(error.__traceback__)
            position = f"{frames[-1].filename}, line {frames[-1].lineno}"
            raise MetricError(
                "postprocess-failed",
                f"the postprocess {self.origin} failed",
                why=f"{type(error).__name__}: {error} ({position})\n{_describe(named)}",
                hint="it takes the outputs of a batch by name, and returns a list with one result "
                "for each sample",
            ) from error
        if isinstance(results, (list, tuple)) and count in (-1, len(results)):
            return list(results)
        number = f" of {len(results)}" if isinstance(results, (list, tuple)) else ""
        raise MetricError(
            "postprocess-result",
            f"the postprocess {self.origin} did not return one result for each sample",
            why=f"it returned {type(results).__name__}{number} for {count} samples; "
            f"{_describe(named)}",
            hint="return a list with one result for each sample of the batch",
        )


def _describe(outputs: Mapping[str, np.ndarray]) -> str:
    shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in outputs.items())
    return f"outputs: {shapes}"


def load_postprocess(text: str, folders: Sequence[Path], names: Sequence[str]) -> Postprocess:
    """Import a postprocess "file.py:function" or "package.module:function".

    Args:
        text: the function.
        folders: import path of the function's module; relative paths start from the first.
        names: of the model's outputs.

    Raises MetricError `postprocess-import`.
    """
    try:
        function = load_function(text, folders)
    except DataError as error:
        raise MetricError(
            "postprocess-import",
            f"the postprocess {text} cannot be imported",
            why=f"{error.what}: {error.why}" if error.why else error.what,
            hint="name it as path/to/file.py:function",
        ) from error
    decode = cast("Callable[[Mapping[str, np.ndarray]], Sequence[object]]", function)
    return Postprocess(decode, tuple(names), text, digest_function(function))
