"""Import and call the user's factory, which builds the network."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.files import expand_user
from edgepack.source.code import is_installed
from edgepack.spec.suggestions import nearest

if TYPE_CHECKING:
    from torch import nn

# Modules that an earlier factory imported. Each load imports the user's code again, so that the
# code that runs is the code on disk, which the digest covers.
_imported: set[str] = set()


@dataclass(frozen=True)
class Factory:
    """Callable of the user's that builds a network.

    Attributes:
        spec: "package.module:function" or "path/to/file.py:function".
        function: the callable.
        module: the Python module that defines it.
        option: the option that names it, for errors.
    """

    spec: str
    function: Callable[..., object]
    module: ModuleType
    option: str = "--arch"

    def build(self, torch: ModuleType, arguments: Mapping[str, object]) -> nn.Module:
        """Call the factory, and return its torch module in eval mode.

        torch's random state is fixed during the call, and restored.

        Raises:
            SourceError: source-factory-arguments, source-factory-failed, source-factory-result.
        """
        self._check_arguments(arguments)
        # Weights that the checkpoint does not replace would differ from build to build; that
        # they are random at all is found by `network._check_unsaved`.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                built = self.function(**arguments)
            except Exception as error:
                raise SourceError(
                    "source-factory-failed",
                    f"the factory {self.spec} failed",
                    why=_user_error(error),
                    hint=f"it was called with {_call(arguments)}; run it on its own to see more",
                ) from error
        if not isinstance(built, torch.nn.Module):
            raise SourceError(
                "source-factory-result",
                f"the factory {self.spec} did not return a torch module",
                why=f"it returned {type(built).__module__}.{type(built).__qualname__}",
                hint="return the network itself, not a tuple or a class",
            )
        module: nn.Module = built
        # The return value is ignored: an overridden train() often returns nothing.
        module.eval()
        return module

    def _check_arguments(self, arguments: Mapping[str, object]) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return  # A callable without a signature raises its own error.
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise SourceError(
                "source-factory-arguments",
                f"the factory {self.spec} cannot be called with {_call(arguments)}",
                why=f"{error}; its signature is {signature}",
                hint=_suggest_argument(self.option, arguments, signature)
                or f"set its arguments with {self.option}-arg NAME=VALUE",
            ) from error


def _call(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "no arguments"


def _suggest_argument(
    option: str, arguments: Mapping[str, object], signature: inspect.Signature
) -> str:
    for name in arguments:
        if name not in signature.parameters:
            near = nearest(name, signature.parameters)
            if near:
                return f"did you mean {option}-arg {near}=...?"
    return ""


@contextmanager
def importable(folders: tuple[Path, ...]) -> Iterator[None]:
    """Put folders, and the current one, at the front of the import path."""
    # Modules of an earlier load are forgotten first: of "net.py" in two folders, the second load
    # would get the first one's from sys.modules.
    path_before = list(sys.path)
    before = set(sys.modules)
    for name in _imported & before:
        del sys.modules[name]
    before -= _imported
    _imported.clear()
    importlib.invalidate_caches()
    front = [str(folder.resolve()) for folder in (*folders, Path.cwd())]
    sys.path[:0] = front
    try:
        yield
    finally:
        # The folders in front, and those that were added inside: a factory's file adds its own
        # (see `_import_file`). The rest of the path is Python's and the user's packages.
        added = set(sys.path).difference(path_before).union(front)
        sys.path[:] = path_before
        roots = set(map(Path, added))
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], roots):
                _imported.add(name)


def _lies_in(module: ModuleType, roots: set[Path]) -> bool:
    """Return True if a module is the user's: in one of the folders, and not installed there."""
    file = getattr(module, "__file__", None)
    if not file or module.__name__.partition(".")[0] == "edgepack":
        return False
    path = Path(os.path.realpath(file))
    return not is_installed(path) and not roots.isdisjoint(path.parents)


def find(spec: str, base: tuple[Path, ...], option: str = "--arch") -> Factory:
    """Import the factory that `spec` names; call it inside `importable`.

    Args:
        spec: "package.module:function" or "path/to/file.py:function".
        base: folders that relative paths are resolved against, before the current one.
        option: the option that names it, for errors.

    Raises:
        SourceError: source-arch-form, source-arch-import, source-arch-missing.
    """
    location, colon, name = spec.rpartition(":")
    if not colon or not location or not all(map(str.isidentifier, name.split("."))):
        raise SourceError(
            "source-arch-form",
            f"{option} {spec!r} does not name a factory",
            why="its form is package.module:function or path/to/file.py:function",
            hint=_suggest_form(spec, option),
        )
    module = _import(f"{option} {spec}", location, base)
    target: object = module
    # "nets:Small.tiny" is a class method: `Small` of the module, then `tiny` of the class.
    for part in name.split("."):
        if not hasattr(target, part):
            choices = _callables(target)
            near = nearest(part, choices)
            hint = "check the name after the colon"
            if near:
                hint = f"did you mean {location}:{near}?"
            raise SourceError(
                "source-arch-missing",
                f"{location} has no {name}",
                why=f"its callables: {', '.join(choices[:8]) or 'none'}",
                hint=hint,
            )
        target = getattr(target, part)
    if not callable(target):
        raise SourceError(
            "source-arch-missing",
            f"{spec} is not callable",
            why=f"it is of type {type(target).__name__}",
            hint="name a function or class that returns the network",
        )
    return Factory(spec, target, module, option)


def _callables(target: object) -> list[str]:
    """Return the public names of a module or a class that can be called."""
    names = []
    for name, value in vars(target).items():
        if callable(value) and not name.startswith("_"):
            names.append(name)
    return names


def _suggest_form(spec: str, option: str) -> str:
    """Suggest a spec with a colon: "nets.small" becomes "nets:small"."""
    # "net.py" is a file whose function is missing, not the function `py` of a module `net`.
    if "/" in spec or spec.endswith(".py"):
        return f"{option} {spec}:FUNCTION, a function of that file that returns the network"
    module, _, function = spec.rpartition(".")
    return f"did you mean {option} {module or 'my_model'}:{function}?"


def _import(label: str, location: str, base: tuple[Path, ...]) -> ModuleType:
    try:
        if location.endswith(".py") or "/" in location or os.sep in location:
            return _import_file(label, expand_user(location), base)
        return importlib.import_module(location)
    except SourceError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(
            "source-arch-import",
            f"the module of {label} cannot be imported",
            why=_user_error(error),
            hint="the manifest's folder, the current folder and the installed packages are "
            "searched",
        ) from error


def _import_file(label: str, location: Path, base: tuple[Path, ...]) -> ModuleType:
    file = _find_file(label, [folder / location for folder in (*base, Path.cwd())])
    # The file can import its neighbours, as when Python runs it.
    sys.path.insert(0, str(file.parent))
    name = file.stem
    if name in sys.modules:
        # Another module already has this name: `json.py` must not replace the library's.
        name = f"_edgepack_arch_{file.stem}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise SourceError(
            "source-arch-import",
            f"the file of {label} is not Python",
            why=f"no loader for {file.name}",
            hint="its name must end in .py",
        )
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    _imported.add(name)
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_file(label: str, candidates: list[Path]) -> Path:
    """Return the first candidate that is a file. Raises SourceError source-arch-import."""
    for path in candidates:
        if path.is_file():
            return path.resolve()
    raise SourceError(
        "source-arch-import",
        f"the file of {label} does not exist",
        why="searched: " + ", ".join(map(str, dict.fromkeys(candidates))),
        hint="check the path before the colon",
    )


def _user_error(error: BaseException) -> str:
    """Return the exception's text, and the last line of the user's code in its traceback."""
    text = f"{type(error).__name__}: {error}"
    # A traceback lists the innermost frame last: here, <frozen importlib._bootstrap>, net.py.
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_import = frame.filename.startswith("<frozen") or "importlib" in frame.filename
        if frame.filename != __file__ and not is_import:
            return f"{text}\nat {frame.filename}:{frame.lineno}: {frame.line}"
    return text
