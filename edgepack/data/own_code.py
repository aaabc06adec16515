"""The user's own functions, read from files and checked before a bundle carries them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.data.python.function import FUNCTION
from edgepack.errors import SpecError
from edgepack.runtime.plain import read_plain
from edgepack.runtime.preprocess.code import PACKAGES, Code, CodeInput, Function
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

MAX_SOURCE = 1 << 20
_ALLOWED = "the standard library, numpy, PIL, tokenizers and soundfile"


@dataclass(frozen=True)
class UserCode:
    """Functions of the user that a bundle carries.

    Attributes:
        preprocess: takes the bytes of a sample, and returns its arrays; None for none.
        postprocess: takes the outputs of a batch, and returns one result for each sample; None for
            none, and for a function of an installed module, which no device has.
    """

    preprocess: Function | None = None
    postprocess: Function | None = None

    def requirements(self) -> tuple[str, ...]:
        """Return the lines of requirements.txt for the packages that they import."""
        lines: dict[str, None] = {}
        for function in (self.preprocess, self.postprocess):
            if function is not None:
                lines.update(dict.fromkeys(function.requirements()))
        return tuple(lines)


def read_code(preprocess: str, postprocess: str, python: str = "") -> UserCode:
    """Read the user's functions.

    Args:
        preprocess: "path/to/file.py:function", or "".
        postprocess: the same, or "package.module:function".
        python: the oldest Python of the target's devices, such as "3.8"; "" for unknown.

    Raises SpecError as `read_function` does, and `code-names` if two files have one name.
    """
    code = UserCode(
        read_function(preprocess, python) if preprocess else None,
        read_function(postprocess, python) if ".py:" in postprocess else None,
    )
    first, second = code.preprocess, code.postprocess
    same_name = first is not None and second is not None and first.file == second.file
    if same_name and first is not None and second is not None and first.source != second.source:
        raise SpecError(
            "code-names",
            f"two files are named {first.file}",
            why=f"{preprocess} and {postprocess} share a folder in the bundle",
            hint="rename one of them",
        )
    return code


def read_function(spec: str, python: str = "") -> Function:
    """Read a function that a bundle will carry; its file is parsed, not run.

    Args:
        spec: "path/to/file.py:function".
        python: version of the device's Python, such as "3.8"; "" for unknown.

    Raises:
        SpecError: code-missing, code-syntax, code-import.
    """
    match = FUNCTION.fullmatch(spec)
    if match is None or not match["module"].endswith(".py"):
        raise SpecError(
            "code-missing",
            f"{spec!r} does not name a function in a file",
            why="the bundle carries one file, so it must be named",
            hint="for example preprocess.py:prepare",
        )
    path, name = Path(match["module"]), match["name"]
    try:
        source = read_plain(path, MAX_SOURCE)
    except OSError as error:
        raise SpecError(
            "code-missing",
            f"{path} cannot be read",
            why=error.strerror or str(error),
            hint="check the path, which is relative to the manifest",
        ) from error
    tree = _parse(source, path, python)
    _require_function(tree, name, path)
    return Function(path.name, source, name, _list_packages(tree, path))


def make_code(function: Function, inputs: Sequence[Tensor]) -> Code:
    """Return the conversion by a function for a model's inputs."""
    fields = []
    for tensor in inputs:
        fields.append(CodeInput(tensor.name, tensor.dtype, tensor.rank))
    return Code(function, tuple(fields))


def _parse(source: bytes, path: Path, python: str) -> ast.Module:
    version = None
    if python:
        # "3.8" of a Jetson refuses a match statement, which came with 3.10.
        major, minor = python.split(".")[:2]
        version = (int(major), int(minor))
    try:
        return ast.parse(source, path.name, feature_version=version)
    except (SyntaxError, ValueError) as error:
        raise SpecError(
            "code-syntax",
            f"{path.name} is not valid Python {python}".rstrip(),
            why=str(error),
            hint=f"the oldest Python of the target's devices must read it: {python or 'any'}",
        ) from error


def _require_function(tree: ast.Module, name: str, path: Path) -> None:
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        # `prepare = functools.partial(load, size=224)` defines a function, too.
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    if name in names:
        return
    near = nearest(name, names)
    hint = f"did you mean {near}?" if near else f"define it: def {name}(...)"
    raise SpecError(
        "code-missing",
        f"{path.name} does not define {name}",
        why=f"it defines {', '.join(names) or 'nothing'}",
        hint=hint,
    )


def _list_packages(tree: ast.Module, path: Path) -> tuple[str, ...]:
    """Return the distributions beside numpy that a file imports.

    Raises SpecError `code-import` for an import that a device does not have.
    """
    distributions = {name: distribution for name, distribution, _ in PACKAGES}
    packages: set[str] = set()
    for module, line in _list_imports(tree):
        if module in distributions:
            # `import PIL` needs the distribution pillow.
            packages.add(distributions[module])
            continue
        if module == "numpy" or module in sys.stdlib_module_names:
            continue
        raise SpecError(
            "code-import",
            f"{path.name}, line {line} imports {module or 'a relative module'}",
            why=f"a bundle carries one file, and its device has {_ALLOWED}",
            hint="copy the few lines that you need into the file, or use one of these packages",
        )
    return tuple(sorted(packages))


def _list_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the top module and the line of each import; "" for a relative one."""
    # `import PIL.Image` and `from PIL import Image` both give PIL.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ""
            yield module.partition(".")[0], node.lineno
