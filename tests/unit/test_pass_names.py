"""Only a pass itself tests for its name: everything else asks the pass, its own or a plug-in's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack import __file__ as package
from edgepack import passes

FOLDER = Path(package).parent
# Names of torch's functions, some of which could name a pass as well.
ALLOWED = {
    "source/precision.py": "methods of tensors, such as half",
    "passes/aware/sites.py": "functions, such as clip",
}


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every constant that selects a branch or an entry."""
    for node in ast.walk(tree):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            operands = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            operands = [node.slice]
        elif isinstance(node, ast.MatchValue):
            operands = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("get", "pop", "startswith", "index", "count"):
                operands = node.args[:1]
        elif isinstance(node, ast.Set | ast.List | ast.Tuple):
            operands = node.elts
        for operand in operands:
            if isinstance(operand, ast.Constant) and isinstance(operand.value, str):
                yield operand.lineno, operand.value


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("if name == 'half': pass", [1]),
        ("if name in ('prune', 'x'): pass", [1]),
        ("advice = {'quantize': 'more samples'}", [1]),
        ("advice.get('distill')", [1]),
        ("print('half', name='half')", []),
    ],
)
def test_the_search_finds_names(text: str, lines: list[int]) -> None:
    found = [line for line, value in compared(ast.parse(text)) if value in passes.PASSES]
    assert found == lines


def test_no_pass_name_is_tested_outside_its_package() -> None:
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        name = path.relative_to(FOLDER).as_posix()
        parts = path.relative_to(FOLDER).parts
        own = parts[1] if parts[0] == "passes" and len(parts) > 2 else ""
        if name in ALLOWED or name == "passes/table.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{name}:{line}: {value!r}"
            for line, value in compared(tree)
            if value in passes.PASSES and value != own
        ]
    assert not found, (
        "ask the pass instead, or add the file to ALLOWED if the text is no name of a pass"
    )
