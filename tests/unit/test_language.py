"""Names and docstrings in plain English: a list of words that say nothing, not a style checker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack import __file__ as package

FOLDER = Path(package).parent
FILES = sorted(FOLDER.rglob("*.py"))

# A past participle or a filler says that something happened to a value, not what it is.
BANNED_NAMES = {
    "asked", "found", "given", "kept", "known", "look", "looked", "made", "place", "places",
    "seen", "taken", "told", "wanted",
}  # fmt: skip
# A docstring starts with a verb, or with the noun that the object is.
BANNED_OPENINGS = {"how", "what", "where", "whether", "which", "who", "why"}
# `place` as a verb: a pass places its integer nodes. The other words are of the ssh protocol.
ALLOWED = {
    ("passes/half/placement.py", "place"),
    ("passes/quantize/static/placement.py", "place"),
    ("passes/quantize/static/placement_tensorrt.py", "place"),
    ("device/ssh/remote.py", "look"),
    ("device/ssh/remote.py", "place"),
    # A key of `setup --json`.
    ("runtime/documents.py", "made"),
}


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of everything that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_names_say_what_they_hold_and_docstrings_open_with_a_verb_or_noun(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name_of = path.relative_to(FOLDER).as_posix()
    names = [
        f"{name_of}:{line}: {name}"
        for line, name in bindings(tree)
        if name.strip("_") in BANNED_NAMES and (name_of, name) not in ALLOWED
    ]
    openings = [
        f"{name_of}:{line}: {text.splitlines()[0]}"
        for line, text in docstrings(tree)
        if text.split()[0].lower().strip("`,.:") in BANNED_OPENINGS
    ]
    assert not names + openings
