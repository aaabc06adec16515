"""Samples from a user's function: `package.module:function` or `file.py:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from edgepack.data.python.values import describe_error, open_value
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.files import expand_user
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

# MODULE:NAME, split at the last colon, so that the colon of a drive letter is part of the path.
FUNCTION = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*)")


def open_function(
    spec: str, inputs: tuple[Tensor, ...], folders: Sequence[Path], *, same: bool = True
) -> SampleStream:
    """Open the samples of a function, or of an object such as a DataLoader; see `open_value`.

    Args:
        spec: its module and name.
        inputs: the model's inputs.
        folders: import path of the modules; relative paths start from the first folder.
        same: refuse a pass that yields different samples than the first complete pass did.

    Raises:
        DataError: it cannot be imported, or its samples do not fit.
    """
    return open_value(load_object(spec, folders), inputs, origin=spec, same=same)


def load_function(spec: str, folders: Sequence[Path]) -> Callable[..., object]:
    """Import a function, as `load_object` does. Raises DataError."""
    value = load_object(spec, folders)
    if callable(value):
        return cast("Callable[..., object]", value)
    module, _, name = spec.rpartition(":")
    raise DataError(
        "samples-function-missing",
        f"{module} has no function {name}",
        why=f"{name} is a {type(value).__name__}",
        hint="define it as a function",
    )


def load_object(spec: str, folders: Sequence[Path]) -> object:
    """Import `package.module:name` or `path/to/file.py:name`.

    A relative path starts from the first folder. During the import `sys.path` begins with the
    file's own folder, or with all of `folders` for a dotted name.

    Raises:
        DataError: `samples-function-import` or `samples-function-missing`.
    """
    match = FUNCTION.fullmatch(spec)
    if match is None:
        raise DataError(
            "samples-function-import",
            f"{spec} does not name a function",
            why="the form is module:function",
            hint="for example data.py:calibration",
        )
    module = _import(match["module"], spec, folders)
    value: object = getattr(module, match["name"], None)
    if value is None:
        names, public = [], []
        for name, member in vars(module).items():
            if callable(member):
                names.append(name)
                if not name.startswith("_"):
                    public.append(name)
        near = nearest(match["name"], names)
        hint = "define it as a function without arguments"
        if near:
            hint = f"did you mean {near}?"
        raise DataError(
            "samples-function-missing",
            f"{match['module']} has no function {match['name']}",
            why=f"its functions: {', '.join(public) or '-'}",
            hint=hint,
        )
    return value


def _import(name: str, spec: str, folders: Sequence[Path]) -> ModuleType:
    try:
        if not name.endswith(".py"):
            with _importable(folders):
                return importlib.import_module(name)
        path = (folders[0] / expand_user(name)).resolve()
        loader = importlib.util.spec_from_file_location(f"_samples_{path.stem}", path)
        if loader is None or loader.loader is None or not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        module = importlib.util.module_from_spec(loader)
        # Register the module before it runs: dataclasses look up their own module there.
        sys.modules[loader.name] = module
        with _importable([path.parent]):
            loader.loader.exec_module(module)
        return module
    except Exception as error:  # the user's module may raise anything on import
        raise DataError(
            "samples-function-import",
            f"{name} cannot be imported",
            why=describe_error(error),
            hint="use package.module:function with the package installed, "
            "or path/to/file.py:function",
        ) from error


@contextlib.contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    entries = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            sys.path.remove(entry)
