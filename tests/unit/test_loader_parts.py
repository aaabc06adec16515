"""A bundle carries the parts of the loader that its variants use, each with what it imports."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import bundle, runtime
from edgepack.bundle import admit, loader
from edgepack.bundle.loader import OPTIONAL, Need, Needs
from edgepack.bundle.source import find_imports, strip_documentation
from edgepack.runtime.bundle.engines import Variant
from support.bundle_cases import entry_names, reseal, run_bundle
from support.linear import linear_contents

RUNTIME = Path(runtime.__file__).parent
SOURCES = sorted(path.relative_to(RUNTIME).as_posix() for path in RUNTIME.rglob("*.py"))
CPU: Needs = frozenset({Need.TUNE})
GPU: Needs = frozenset({Need.GPU})
BUILT = GPU | {Need.TENSORRT}
UNFINISHED = BUILT | {Need.FINISH}
COMBINATIONS = loader.list_combinations()
LARGEST_CPU_LOADER = 150_000
# Parts with a limit of their own, which does not count for the loader's.
SERVE = ("runtime/serve/", "runtime/commands/serve.py")
LARGEST_SERVE = 30_000
TUNE = (
    *("runtime/commands/tune.py", "runtime/commands/apart.py", "runtime/commands/proof.py"),
    *("runtime/device/tuned.py", "runtime/bundle/trusted.py", "runtime/bundle/atomic.py"),
)
LARGEST_TUNE = 22_000


def size_of(needs: Needs) -> int:
    """Return the bytes of a loader without its server and its tuning."""
    files = loader.read_files(needs)
    size = 0
    for name, data in files.items():
        if name.startswith(loader.FOLDER) and not name.startswith((*SERVE, *TUNE)):
            size += len(data)
    return size


def test_the_server_is_small() -> None:
    files = loader.read_files(CPU)
    sizes = [len(data) for name, data in files.items() if name.startswith(SERVE)]
    assert len(sizes) == 6
    assert sum(sizes) <= LARGEST_SERVE


def test_tuning_is_small_and_only_in_bundles_for_cpus() -> None:
    files = loader.read_files(CPU)
    assert sum(len(files[name]) for name in TUNE) <= LARGEST_TUNE
    assert not {"runtime/commands/tune.py", "runtime/device/tuned.py"} & set(loader.read_files(GPU))


@pytest.mark.parametrize(
    "needs", COMBINATIONS, ids=lambda needs: "-".join(sorted(n.name for n in needs))
)
def test_every_import_is_carried_or_serves_another_need(needs: Needs) -> None:
    selected = loader.select_modules(needs)
    for name in selected:
        for imported in find_imports(RUNTIME, name):
            if imported not in selected:
                assert OPTIONAL[imported] not in needs, f"{name} imports {imported}"


def test_an_optional_module_is_imported_inside_functions() -> None:
    """At the top of a module, its absence would break a bundle that does not need it."""
    for needs in COMBINATIONS:
        selected = loader.select_modules(needs)
        for name in selected:
            assert set(imports_at_top(name)) <= set(selected), name


def imports_at_top(name: str) -> list[str]:
    """Return the modules that a module imports when it is imported itself."""
    tree = ast.parse((RUNTIME / name).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    modules = []
    for node in imports:
        folder = Path(name).parents[node.level - 1]
        # `from .. import strict_json` names modules of the folder itself.
        if node.module:
            folder = folder.joinpath(*node.module.split("."))
            modules.append(folder.with_suffix(".py"))
        modules += [folder / f"{alias.name}.py" for alias in node.names]
    return [module.as_posix() for module in modules if (RUNTIME / module).is_file()]


def test_every_module_is_carried_by_some_bundle() -> None:
    everything = loader.select_modules(frozenset(Need))
    absent = [name for name in SOURCES if name not in everything]
    # Types of documents, of preprocessings and of TensorRT are for type checkers alone.
    types = {"documents.py", "preprocess/protocol.py", "session/tensorrt_types.py"}
    assert set(absent) <= types


@pytest.mark.parametrize("name", SOURCES)
def test_a_stripped_module_is_the_same_program_on_the_same_lines(name: str) -> None:
    source = (RUNTIME / name).read_text(encoding="utf-8")
    stripped = strip_documentation(source)
    assert len(stripped.splitlines()) == len(source.splitlines())
    actual, expected = ast.parse(stripped), undocumented(ast.parse(source))
    assert ast.dump(actual) == ast.dump(expected)
    assert lines_of(actual) == lines_of(expected)


def lines_of(tree: ast.Module) -> list[int | None]:
    return [getattr(node, "lineno", None) for node in ast.walk(tree)]


def undocumented(tree: ast.Module) -> ast.Module:
    """Return a tree without docstrings, types but those of fields, and imports for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body.pop(0)
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass(lineno=first.lineno)]
        node.body = [
            child
            for child in node.body
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        ]
    Untyped().visit(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    body = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "typing":
            statement.names = [alias for alias in statement.names if alias.name in used]
            if not statement.names:
                continue
        body.append(statement)
    tree.body = body
    return tree


class Untyped(ast.NodeTransformer):
    """Turns typed assignments into plain ones, except those of classes."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        for child in node.body:
            if not isinstance(child, ast.AnnAssign):
                self.visit(child)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return node
        return ast.Assign([node.target], node.value, lineno=node.lineno)


def test_a_string_keeps_what_looks_like_a_comment() -> None:
    source = 'def f(a: int = 1) -> str:\n    """Doc # one."""\n    return "# two"  # three\n'
    assert strip_documentation(source) == 'def f(a=1):\n\n return "# two"\n'


def test_spaces_stay_where_two_words_meet() -> None:
    source = 'if not a in (1, -2) or "x" f"{a + 1} {a = }" != b[1 :]:\n    x = yield (a)\n'
    expected = 'if not a in(1,-2)or "x" f"{a + 1} {a = }"!=b[1:]:\n x=yield(a)\n'
    assert strip_documentation(source) == expected


def test_types_of_variables_and_their_imports_go() -> None:
    source = (
        "from typing import Dict, NamedTuple, Optional\n"
        "class Pair(NamedTuple):\n"
        "    left: Optional[int] = None\n"
        "    def items(self):\n"
        "        self.all: Dict[str, int] = {}\n"
        "        rest: int\n"
    )
    assert strip_documentation(source) == (
        "from typing import NamedTuple,Optional\n"
        "class Pair(NamedTuple):\n"
        " left:Optional[int]=None\n"
        " def items(self):\n"
        "  self.all={}\n"
        "  rest:int\n"
    )


def test_a_string_of_several_lines_keeps_its_indentation() -> None:
    source = (
        "def f(a):\n"
        "    if a:\n"
        '        text = """one\n'
        "        two\n"
        '    """\n'
        "        return (\n"
        '            f"""{a}\n'
        "            {a + 1}\n"
        '            """,\n'
        "            text,\n"
        "        )\n"
    )
    stripped = strip_documentation(source)
    assert stripped.startswith('def f(a):\n if a:\n  text="""one\n        two\n    """\n')
    assert stripped.endswith('\n            {a + 1}\n            """,\ntext,\n)\n')
    assert ast.dump(ast.parse(stripped)) == ast.dump(ast.parse(source))


@pytest.mark.parametrize(("target", "arch"), [("cpu-fbgemm", "x86_64"), ("arm-qnnpack", "aarch64")])
def test_a_bundle_for_cpus_carries_a_small_loader(target: str, arch: str, tmp_path: Path) -> None:
    path = tmp_path / "x.edgepack"
    contents = linear_contents()
    device = {**contents.device, "arch": arch, "isa": []}
    bundle.write(path, replace(contents, target=target, device=device))
    carried = {}
    for name, size in entry_names(path).items():
        if name.startswith(loader.FOLDER) and not name.startswith((*SERVE, *TUNE)):
            carried[name] = size
    assert sum(carried.values()) == size_of(CPU) <= LARGEST_CPU_LOADER
    for word in ("wheels", "tensorrt", "cuda", "gpu", "seal", "finish", "rounding"):
        assert not [name for name in carried if word in name]


def test_variants_bring_the_parts_that_they_need(tmp_path: Path) -> None:
    contents = linear_contents()
    cuda = Variant("cuda", "onnxruntime-cuda", {})
    unfinished = Variant("tensorrt", "tensorrt", {})
    for variants, expected in (
        ([*contents.variants], CPU),
        ([cuda, *contents.variants], GPU),
        ([unfinished, *contents.variants], UNFINISHED),
    ):
        path = tmp_path / "x.edgepack"
        bundle.write(path, replace(contents, variants=variants))
        assert loader.find_needs(variants, ()) == expected
        carried = {name for name in entry_names(path) if name.startswith(loader.FOLDER)}
        assert carried == set(loader.read_files(expected)) - {loader.MAIN}
        with admit(path) as admitted:
            assert admitted.loader == loader.own(expected)
    assert len(set(loader.own_digests())) == len(COMBINATIONS)


def test_the_parts_of_another_bundle_are_no_loader_of_this_release(
    linear_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.edgepack"
    reseal(linear_bundle, path, loader.read_files(GPU))
    with admit(path) as admitted:
        assert admitted.loader.release is None


def test_a_bundle_with_the_whole_loader_still_verifies(linear_bundle: Path, tmp_path: Path) -> None:
    """As releases before this one wrote it."""
    path = tmp_path / "x.edgepack"
    whole = {f"{loader.FOLDER}{name}": (RUNTIME / name).read_bytes() for name in SOURCES}
    reseal(linear_bundle, path, whole)
    done = run_bundle(path, "verify")
    assert (done.returncode, done.stdout.endswith("verdict: PASS\n")) == (0, True)
    with admit(path) as admitted:
        assert admitted.loader.release is None
