"""The documentation builds strictly, and its pages ask for nothing outside the site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

# A link may lead elsewhere; a script, a style sheet, a font or a picture may not come from there.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)
    |<link\b(?![^>]*\brel=["']?(?:canonical|next|prev))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)
    |@import\s+(?:url\()?["']?((?:https?:)?//[^"')\s]+)
    |url\(["']?((?:https?:)?//[^"')\s]+)""",
    re.VERBOSE,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 40
    for page in pages:
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page.relative_to(site)


def test_the_pages_never_ask_a_code_host_for_its_stars(site: Path) -> None:
    """The theme does so wherever a page shows a repository."""
    for page in site.rglob("*.html"):
        assert 'data-md-component="source"' not in page.read_text(encoding="utf-8")


def test_the_page_of_benchmarks_is_written_from_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/page.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
