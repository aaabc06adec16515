"""Digest of the user's code: the file of a function, and the files beside it that it imports."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path


def digest_function(function: Callable[..., object]) -> str:
    """Return the SHA-256 of the file that defines a function, and of those that it imports.

    Imports count if they lie in the folder of the file or in one below it, since other code
    belongs to installed packages. "" for a function without a file.
    """
    try:
        name = inspect.getsourcefile(function)
    except TypeError:
        name = None
    if name is None or not Path(name).is_file():
        return ""
    digest = hashlib.sha256()
    for path in sorted(_collect_files(Path(name).resolve())):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _collect_files(file: Path) -> set[Path]:
    """Return a file, and those in its folder that it imports, directly or not.

    metrics.py with `import helpers` and helpers.py with `from tables import WORDS` give the three
    files metrics.py, helpers.py and tables.py.
    """
    files, pending = set[Path](), [file]
    while pending:
        path = pending.pop()
        if path in files:
            continue
        files.add(path)
        pending += _list_imported(path, file.parent)
    return files


def _list_imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files below a folder that a file imports, anywhere in its code."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _find_modules(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            folder = root
            # `from ..tables import x` starts one folder above that of the file.
            if node.level:
                folder = path.parents[min(node.level, len(path.parents)) - 1]
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                # `from tables import WORDS` may name a module WORDS.py in a package `tables`.
                yield from _find_modules(folder, [*parts, alias.name])


def _find_modules(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the files that an import runs: ["a", "b"] gives a/__init__.py and a/b.py."""
    for part in parts:
        for file in (folder / f"{part}.py", folder / part / "__init__.py"):
            if file.is_file():
                yield file.resolve()
        folder = folder / part
