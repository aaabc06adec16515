"""The page of `serve` in a real browser, out of a real bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.browser import Tab, browser
from support.serving import Served

TIME = "document.querySelector('#time').textContent"
FAULT = "document.querySelector('#fault').textContent"
BARS = "[...document.querySelectorAll('#bars li')].map(row => row.innerText.split('\\n'))"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


def open_page(tab: Tab, served: Served, name: str) -> None:
    tab.open(served.url)
    tab.wait_for(f"document.title == {name!r}")


def test_a_dropped_picture_gets_named_bars_and_its_time(
    tab: Tab, served_colours: Served, tmp_path: Path
) -> None:
    file = tmp_path / "green.png"
    Image.new("RGB", (60, 40), (20, 230, 20)).save(file)
    open_page(tab, served_colours, "colours")
    tab.drop(file, "#drop")
    assert " ms in the model" in tab.wait_for(TIME)
    rows = tab.evaluate(BARS)
    assert [row[0] for row in rows][:1] == ["green"]
    assert rows[0][1].endswith(" %")
    assert tab.evaluate("document.querySelector('#drop img').naturalWidth") == 60


def test_a_dropped_text_shows_the_reason(tab: Tab, served_colours: Served, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("no picture")
    open_page(tab, served_colours, "colours")
    tab.drop(file, "#drop")
    assert "picture" in tab.wait_for(FAULT)
    assert tab.evaluate(BARS) == []


def test_a_typed_text_gets_named_bars(tab: Tab, served_words: Served) -> None:
    open_page(tab, served_words, "words")
    tab.evaluate("document.querySelector('#text').focus()")
    tab.call("Input.insertText", {"text": "good, <b>good</b> film"})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2}
    tab.call("Input.dispatchKeyEvent", {"type": "keyDown", **enter})
    tab.wait_for(TIME)
    assert [row[0] for row in tab.evaluate(BARS)] == ["favourable", "unfavourable"]
    assert tab.evaluate("document.querySelector('#raw').hidden")


def test_the_page_of_a_model_of_arrays_sends_its_example(tab: Tab, served_linear: Served) -> None:
    open_page(tab, served_linear, "linear")
    curl = tab.evaluate("document.querySelector('#curl').innerText")
    assert curl.startswith(f"curl {served_linear.url}v2/models/linear/infer -d '")
    tab.evaluate("document.querySelector('form button').click()")
    tab.wait_for(TIME)
    assert tab.evaluate(BARS) == [[f"class {i}", "33.3 %"] for i in range(3)]
    tab.evaluate("document.querySelector('#text').value = '{'")
    tab.evaluate("document.querySelector('form button').click()")
    assert "not JSON" in tab.wait_for(FAULT)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_colour_schemes(
    dark: bool, tab: Tab, served_colours: Served
) -> None:
    tab.resize(360, 740, dark=dark)
    open_page(tab, served_colours, "colours")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    channels = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
    assert (int(channels[0]) < 128) == dark
