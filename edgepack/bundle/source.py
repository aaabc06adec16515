"""Source text of the loader: the modules that a module imports, and the text that a bundle takes.

Comments, docstrings and types are a third of the source, and spaces a sixth.
Devices compile the loader anew at every start and never read them. Every line keeps its number, so
that an error on a device names the line of the source.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeGuard

# Spaces per level in the source, which a bundle needs only one of.
_INDENT = 4


def find_imports(folder: Path, name: str) -> list[str]:
    """Return the modules that a module of a package imports, itself's packages included.

    Imports for type checkers alone do not count. With `from ..device import machine`, the module
    `commands/verify.py` imports `device/__init__.py` and `device/machine.py`.

    Args:
        folder: of the package.
        name: of the module, as a path below the folder.
    """
    candidates = [f"{parent}/__init__.py" for parent in PurePosixPath(name).parents]
    tree = ast.parse((folder / name).read_text(encoding="utf-8"))
    for node in _walk_executed(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        # Level 1 is the module's own folder, level 2 the folder above.
        base = PurePosixPath(name).parents[node.level - 1].joinpath(*(node.module or "").split("."))
        candidates += [f"{base}.py", f"{base}/__init__.py"]
        # A name that is imported may be a module, or something in one.
        for alias in node.names:
            candidates.append(f"{base}/{alias.name}.py")
    modules = set()
    for candidate in candidates:
        if (folder / candidate).is_file():
            modules.add(candidate.removeprefix("./"))
    return sorted(modules)


def _walk_executed(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements of a module at any depth, except those under `if TYPE_CHECKING`."""
    pending: list[ast.AST] = [tree]
    while pending:
        for child in ast.iter_child_nodes(pending.pop()):
            # No statement is inside of an expression, and most nodes are.
            if isinstance(child, ast.expr) or _is_for_type_checkers(child):
                continue
            yield child
            pending.append(child)


def strip_documentation(source: str) -> str:
    """Return a module without its documentation, and without what only type checkers read.

    Each line keeps its number. The result does not depend on the Python that computes it:

        def area(a: int, b: int = 1) -> int:    def area(a,b=1):
            '''Return the area.'''
            # Both are in metres.
            return a * b  # m2                   return a*b
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    nodes = list(ast.walk(ast.parse("\n".join(lines))))
    _cut_annotations(nodes, lines)
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            _blank_docstring(node, lines)
        elif _is_for_type_checkers(node):
            _blank(node, lines)
    _drop_unused_types(lines)
    return _remove_spaces("\n".join(lines) + "\n")


def strip_indentation(page: str) -> str:
    """Return an HTML page, in which indentation has no meaning, without it and empty lines.

    Lines of comments in its script go, too.
    """
    lines = []
    for line in page.splitlines():
        text = line.strip()
        if text and not text.startswith("//"):
            lines.append(text)
    return "\n".join(lines) + "\n"


def _remove_spaces(source: str) -> str:
    """Return a module without the spaces that Python does not need; strings stay as they are.

    total = sum(            total=sum(
        x for x in rows     x for x in rows
    )                       )
    """
    lines = source.split("\n")
    cuts: list[tuple[int, int, int]] = []
    end, was_word, depth = (0, 0), False, 0
    for token in _list_tokens(source):
        row, column = token.start
        is_word = token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING)
        if row != end[0]:
            # Within brackets Python ignores indentation. Elsewhere each level needs one space; the
            # formatter gives it four.
            cuts.append((row, 0 if depth else column // _INDENT, column))
        elif not (was_word and is_word):
            cuts.append((row, end[1], column))
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        end, was_word = token.end, is_word
    # From the last one on: a cut moves what follows it in its line.
    for row, first, last in reversed(cuts):
        lines[row - 1] = lines[row - 1][:first] + lines[row - 1][last:]
    return "\n".join(lines)


def _list_tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a module that have text, each f-string as one.

    Python 3.12 and later split an f-string into several tokens, earlier ones do not.
    """
    opened: list[tuple[int, int]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            opened.append(token.start)
        elif name == "FSTRING_END":
            start = opened.pop()
            if not opened:
                yield tokenize.TokenInfo(tokenize.STRING, "", start, token.end, "")
        elif not opened and name not in ("INDENT", "DEDENT", "NEWLINE", "NL", "ENDMARKER"):
            yield token


def _cut_annotations(nodes: Sequence[ast.AST], lines: list[str]) -> None:
    """Remove the types of parameters, results and variables.

    Those of a class's fields define it and stay.
    """
    fields = _list_fields(nodes)
    cuts: list[tuple[int, int, ast.expr]] = []
    for node in nodes:
        if isinstance(node, ast.arg) and node.annotation is not None:
            cuts.append((node.lineno, node.col_offset + len(node.arg), node.annotation))
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            before = lines[node.returns.lineno - 1][: node.returns.col_offset]
            cuts.append((node.returns.lineno, before.rindex(" ->"), node.returns))
        # `total: int = 0` becomes `total = 0`.
        if isinstance(node, ast.AnnAssign) and node not in fields and _is_on_one_line(node):
            column = node.target.end_col_offset or node.target.col_offset
            cuts.append((node.lineno, column, node.annotation))
    # From the last one on: a cut moves what follows it in its line.
    for row, column, annotation in sorted(cuts, key=lambda cut: cut[:2], reverse=True):
        last = annotation.end_lineno or row
        rest = lines[last - 1][annotation.end_col_offset :]
        for number in range(row + 1, last + 1):
            lines[number - 1] = ""
        if last == row:
            lines[row - 1] = lines[row - 1][:column] + rest
        else:
            lines[row - 1] = lines[row - 1][:column]
            lines[last - 1] = rest


def _is_on_one_line(node: ast.AnnAssign) -> bool:
    """Return True if a variable has a value, which stays on its line without the type."""
    return node.value is not None and node.annotation.end_lineno == node.lineno


def _list_fields(nodes: Sequence[ast.AST]) -> set[ast.stmt]:
    """Return the statements that stand directly in classes."""
    fields: set[ast.stmt] = set()
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            fields.update(node.body)
    return fields


def _drop_unused_types(lines: list[str]) -> None:
    """Drop the imports from `typing` that served only types which are gone."""
    tree = ast.parse("\n".join(lines))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or node.module != "typing":
            continue
        names = [alias.name for alias in node.names if alias.name in used]
        if not names:
            _blank(node, lines)
        elif node.end_lineno == node.lineno:
            lines[node.lineno - 1] = f"from typing import {', '.join(names)}"
        else:
            # The formatter gives each name of a longer import its own line.
            for alias in node.names:
                if alias.name not in used:
                    lines[alias.lineno - 1] = ""


def _blank_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef, lines: list[str]) -> None:
    """Empty the lines of a docstring; a body that is nothing else becomes `pass`."""
    if ast.get_docstring(node, clean=False) is None:
        return
    docstring = node.body[0]
    _blank(docstring, lines)
    if len(node.body) == 1 and not isinstance(node, ast.Module):
        lines[docstring.lineno - 1] = " " * docstring.col_offset + "pass"


def _is_for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Name):
        return False
    return node.test.id == "TYPE_CHECKING"


def _blank(statement: ast.stmt, lines: list[str]) -> None:
    """Empty the lines of a statement."""
    # `ast` gives the end of every statement that it parsed.
    for number in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
        lines[number - 1] = ""
