"""The reference pages follow from the code, and are current."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from support import ROOT


def load_generator() -> ModuleType:
    path = ROOT / "docs" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: dict[str, str] = load_generator().write_pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name: str) -> None:
    text = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert text == PAGES[name], "run: make reference"


def test_every_option_and_key_has_a_meaning() -> None:
    for name in ("cli.md", "passes.md", "manifest.md", "target-profile.md"):
        rows = re.findall(r"^\| `.*\|$", PAGES[name], re.M)
        assert len(rows) > 20
        empty = [row for row in rows if row.rstrip("| ").endswith("`") and "--" in row]
        assert not empty


def test_error_codes_that_tests_expect_are_listed() -> None:
    """The tests check codes as users see them, however the sources pass them on."""
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGES["errors.md"], re.M))
    expected = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        expected |= set(re.findall(r"\.code == \"([a-z0-9]+(?:-[a-z0-9]+)+)\"", text))
    # Codes of the passes carry their name, and the examples' code has codes of its own.
    families = re.compile(r"(distill|factorize|prune)-(layers|option)|package-not-fetched")
    assert len(expected) > 150
    missing = {code for code in expected - listed if not families.fullmatch(code)}
    assert missing <= {"dataset-missing", "idx-damaged", "recording-unreadable"}
