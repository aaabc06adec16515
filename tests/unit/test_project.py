"""The project's own files: they agree with the environment and with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import edgepack
from support import ROOT


def test_constraints_name_every_package_of_the_development_environment() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/constraints.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_one() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == edgepack.__version__
    assert f"## {edgepack.__version__}, " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "SECURITY.md"])
def test_the_links_and_make_targets_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_lists_every_guide_and_reference_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((docs/(?:guides|reference)/[a-z-]+\.md)\)", text))
    pages = [*ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/reference/*.md")]
    present = {str(page.relative_to(ROOT)) for page in pages if page.name != "index.md"}
    assert linked == present


def test_the_source_archive_holds_what_its_own_commands_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.split("\n")
    if tracked == [""]:
        pytest.skip("not a git checkout")
    # Git's own files mean nothing outside a checkout; hatchling ships .gitignore by itself.
    expected = {name for name in tracked if name and (ROOT / name).is_file()} - {".gitignore"}
    assert expected <= names, sorted(expected - names)
