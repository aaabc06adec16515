"""The user's own preprocessing and postprocessing: one function of one file each."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple, cast

import numpy as np

from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from ..strict_json import Reader
    from .protocol import ReadFile

# The lines of text.py, which a bundle carries only if it takes texts.
TOKENIZERS = (
    "tokenizers>=0.19,<0.21; python_version < '3.9'",
    "tokenizers>=0.19; python_version >= '3.9'",
)
# Packages beside numpy that a user's file may import: name of the import, distribution, lines of
# requirements.txt.
PACKAGES = (
    ("PIL", "pillow", ("pillow>=8",)),
    ("tokenizers", "tokenizers", TOKENIZERS),
    ("soundfile", "soundfile", ("soundfile>=0.12",)),
)
FOLDER = "preprocess/"
# Python imports no file of this name, so that nothing but a call of the function runs it.
SUFFIX = ".txt"


@dataclass(frozen=True)
class Function:
    """Function of the user, in one file of Python.

    Attributes:
        file: name of the file.
        source: its contents.
        name: of the function.
        packages: distributions that the file imports, see PACKAGES.
        refused: True if it is from a bundle that another loader reads: edgepack's on the build
            host, or that of another bundle.
    """

    file: str
    source: bytes
    name: str
    packages: Tuple[str, ...] = ()
    refused: bool = False

    @classmethod
    def read(cls, reader: Reader, read_file: ReadFile, own: bool = False) -> Function:
        """Read the document of `to_json`. Raises the reader's error if it is not valid.

        Args:
            reader: of the document.
            read_file: returns the file.
            own: True if this loader was imported from the same bundle; else it runs no code.
        """
        file, name = reader.get("file", str), reader.get("function", str)
        packages = reader.each("packages", _read_text)
        title = os.path.basename(file)[: -len(SUFFIX)]
        return cls(title, read_file(file), name, packages, not own)

    def to_json(self) -> Dict[str, object]:
        """Return the document in `bundle.json`."""
        return {
            "file": FOLDER + self.file + SUFFIX,
            "function": self.name,
            "packages": list(self.packages),
        }

    def files(self) -> Mapping[str, bytes]:
        """Return the file."""
        return {FOLDER + self.file + SUFFIX: self.source}

    def requirements(self) -> Tuple[str, ...]:
        """Return the requirements of the packages that the file imports."""
        lines: List[str] = []
        for _, distribution, required in PACKAGES:
            if distribution in self.packages:
                lines += required
        return tuple(lines)

    def versions(self) -> Dict[str, str]:
        """Return the processor, and the versions of numpy and of the packages that are there."""
        from importlib.metadata import PackageNotFoundError, version

        # Both decide the rounding of sines, logarithms and sums.
        versions = {"machine": platform.machine(), "numpy": np.__version__}
        for package in self.packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return versions

    def __call__(self, argument: object) -> object:
        """Call the function.

        Raises:
            InputError: code-failed, for anything that the function raises.
            DeviceError: code-refused, package-missing.
        """
        if self.refused:
            raise DeviceError(
                "code-refused",
                f"the bundle brings its own {self.file}, and only the bundle itself runs it",
                why="this loader is not the one inside the bundle",
                hint="python3 BUNDLE run FILE",
            )
        try:
            function: Callable[[object], object] = getattr(_load(self), self.name)
            return function(argument)
        except ImportError as error:
            raise DeviceError(
                "package-missing",
                f"{self.file} needs a package that cannot be imported",
                why=str(error),
                hint="python3 BUNDLE info --requirements lists the packages",
            ) from error
        except Exception as error:  # the user's function may raise anything
            raise InputError(
                "code-failed",
                f"{self.name} of {self.file} failed",
                why=_describe(error, self.file),
                hint="call the function in Python to reproduce the error",
            ) from error


@dataclass(frozen=True)
class CodeInput:
    """Input of the model that a function fills.

    Attributes:
        name: of the input.
        dtype: numpy's name of its element type.
        rank: number of its axes, the batch included.
    """

    name: str
    dtype: str
    rank: int


@dataclass(frozen=True)
class Code:
    """Conversion of raw bytes to a feed by the user's own function.

    Attributes:
        function: takes bytes; returns a dict of arrays by input name, with or without the batch
            axis, or the array of the only input.
        inputs: of the model.
        takes_text: True if the bytes are a text in UTF-8, and not the contents of a file.
    """

    function: Function
    inputs: Tuple[CodeInput, ...]
    takes_text: bool = False

    @property
    def least_db(self) -> Optional[float]:
        """SNR in dB of arrays that other versions of the packages made."""
        return 30.0

    @property
    def noise(self) -> float:
        """0: the SNR alone counts."""
        return 0.0

    @classmethod
    def read(cls, reader: Reader, read_file: ReadFile, own: bool = False) -> Code:
        """Read the document of `to_json`. Raises as `Function.read` does."""
        inputs = reader.each("inputs", _read_input)
        return cls(Function.read(reader, read_file, own), inputs, reader.get("takes_text", bool))

    def to_json(self) -> Dict[str, object]:
        """Return the document in `bundle.json`."""
        inputs = [vars(tensor) for tensor in self.inputs]
        document: Dict[str, object] = {"kind": "code", **self.function.to_json()}
        return {**document, "inputs": inputs, "takes_text": self.takes_text}

    def files(self) -> Mapping[str, bytes]:
        """Return the file of the function."""
        return self.function.files()

    def requirements(self) -> Tuple[str, ...]:
        """Return the requirements of the packages that the function imports."""
        return self.function.requirements()

    def versions(self) -> Dict[str, str]:
        """Return the versions of the packages that the function imports."""
        return self.function.versions()

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return the feed of one sample.

        Raises:
            InputError: code-failed, code-result.
            DeviceError: code-refused, package-missing.
        """
        # For an input x:float32:batch,3 the arrays (3,) and (1, 3) are the same sample.
        result = self.function(data)
        if not isinstance(result, Mapping):
            result = {self.inputs[0].name: result}
        names = {tensor.name for tensor in self.inputs}
        if set(result) != names:
            raise self._refuse(
                f"it returned {_list_names(result)}; the model takes {_list_names(names)}"
            )
        feed = {}
        for tensor in self.inputs:
            feed[tensor.name] = self._convert(np.asarray(result[tensor.name]), tensor)
        return feed

    def _convert(self, array: np.ndarray, tensor: CodeInput) -> np.ndarray:
        expected = np.dtype(tensor.dtype)
        # Only integers may be widened: a float64 was probably meant to be float32 before a step.
        widened = array.dtype.kind in "iu" and expected.kind in "iu"
        fits = array.dtype == expected or (widened and np.can_cast(array.dtype, expected))
        if not fits:
            raise self._refuse(f"{tensor.name} is {array.dtype}; the model takes {tensor.dtype}")
        if array.ndim == tensor.rank - 1:
            array = array[None]
        if array.ndim != tensor.rank:
            raise self._refuse(
                f"{tensor.name} has {array.ndim} axes; the model takes {tensor.rank} with the "
                "batch, or one less"
            )
        return np.ascontiguousarray(array, dtype=expected)

    def _refuse(self, why: str) -> InputError:
        return InputError(
            "code-result",
            f"{self.function.name} of {self.function.file} returned arrays that do not fit the "
            "model",
            why=why,
            hint='return {"INPUT": array} with one array per input, in its type and shape',
        )


def _list_names(names: object) -> str:
    return ", ".join(sorted(map(str, cast("List[str]", names)))) or "nothing"


@lru_cache(maxsize=8)
def _load(function: Function) -> ModuleType:
    """Run a file, and return it as a module. It is compiled from memory: a bundle is one file."""
    module = ModuleType("_edgepack_" + function.file.partition(".")[0])
    module.__file__ = function.file
    # Registered first: dataclasses look up their own module while the file runs.
    sys.modules[module.__name__] = module
    exec(compile(function.source, function.file, "exec"), module.__dict__)  # noqa: S102
    return module


def _describe(error: BaseException, file: str) -> str:
    """Return an exception with the last line of the user's file that it passed."""
    text = f"{type(error).__name__}: {error}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file:
            return f"{text} ({file}, line {frame.lineno})"
    return text


def _read_input(reader: Reader) -> CodeInput:
    rank = reader.get("rank", int)
    if not 0 <= rank <= 32:
        raise reader.fault(f"its rank is {rank}")
    return CodeInput(reader.get("name", str), reader.get("dtype", str), rank)


def _read_text(reader: Reader) -> str:
    return reader.text()
