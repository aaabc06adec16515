"""What holds of the whole package: who imports whom, what `--help` brings along, what ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import click
import grimp
import pytest

from edgepack.cli import cli
from support import ROOT

HEAVY = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "transformers", "numpy", "PIL")


def test_imports_run_one_way() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


def test_no_modules_import_each_other() -> None:
    imports = {}
    graph = grimp.build_graph("edgepack", cache_dir=None)
    # The package itself has the version, which many import, and imports its interface when used.
    for module in graph.modules - {"edgepack"}:
        imports[module] = graph.find_modules_directly_imported_by(module) - {"edgepack"}
    TopologicalSorter(imports).prepare()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group below `group`, itself included."""
    found = [path]
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        else:
            found.append((*path, name))
    return found


HELPED = """
import contextlib, io, json, sys
from edgepack.cli import main
out = io.StringIO()
sys.argv = ["edgepack", *sys.argv[1:], "--help"]
with contextlib.redirect_stdout(out):
    try:
        main()
    except SystemExit as ended:
        status = ended.code
print(json.dumps({"status": status, "help": out.getvalue(), "modules": sorted(sys.modules)}))
"""


@pytest.mark.parametrize("command", commands(cli), ids=" ".join)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELPED, *command], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == 0
    assert found["help"].startswith(" ".join(["Usage: edgepack", *command]))
    assert set(HEAVY).isdisjoint(found["modules"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as hatchling builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_targets(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    records = {name for name in held if ".dist-info/" in name}
    data = {name for name in held if ".data/" in name}
    assert {name.partition("/")[2] for name in records} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    package = ROOT / "edgepack"
    assert held - records - data == {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name.partition(".data/")[2] for name in data} == {
        f"data/share/edgepack/targets/{path.name}" for path in (ROOT / "targets").iterdir()
    }


@pytest.mark.parametrize(
    "name",
    [
        "edgepack/py.typed",
        "edgepack/bundle/main_template.py",
        "edgepack/report/page/report.html.j2",
        "edgepack/device/instructions/plugin.c",
        "edgepack/device/instructions/classes.h",
        "edgepack/runtime/cli.py",
        "edgepack/spec/schema/target.schema.json",
        "edgepack/spec/schema/manifest.schema.json",
        "edgepack/report/report.schema.json",
    ],
)
def test_the_wheel_holds_what_is_not_imported(wheel: Path, name: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / name).read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `edgepack` from the wheel, in an environment of its own.

    What it depends on is that of this environment, by a .pth file; edgepack itself is not.
    """
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet",
         "--no-index", "--disable-pip-version-check", wheel],
        check=True,
        capture_output=True,
    )  # fmt: skip
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin" / "edgepack"


def run_installed(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_installed_it_finds_its_targets(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, "targets", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [target["name"] for target in json.loads(done.stdout)]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))
    done = run_installed(installed, "targets", "show", "cpu-fbgemm", cwd=tmp_path)
    assert done.stdout == (ROOT / "targets" / "cpu-fbgemm.toml").read_text()


def test_installed_it_is_the_wheel_s(installed: Path, tmp_path: Path) -> None:
    """The test before must not pass thanks to the checkout."""
    code = "import edgepack, edgepack.spec.target as t; print(edgepack.__file__); print(t.folder())"
    done = run_installed(installed.with_name("python"), "-c", code, cwd=tmp_path)
    package, folder = map(Path, done.stdout.splitlines())
    assert package.is_relative_to(installed.parents[1])
    assert folder.is_relative_to(installed.parents[1])
