"""The page: whole by itself, safe with any text, and true to the report."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from edgepack.report import render_html
from edgepack.report.html import latency_bars, size_bars, snr_width
from support import report_cases as cases

MAKE = [cases.passed, cases.failed, cases.unverified, cases.hostile]
VOID = {"meta", "rect", "link", "br"}


class Page(HTMLParser):
    """Elements, attributes and text; asserts that what opens closes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("make", MAKE)
def test_the_page_needs_nothing_else(make: Any) -> None:
    html = render_html(make())
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "a", "form"})
    keys = {key for _, attrs in page.tags for key in attrs}
    assert keys.isdisjoint({"src", "href", "srcset", "style", "action", "data"})
    assert not [key for key in keys if key.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize("make", MAKE)
def test_the_page_is_well_formed_and_accessible(make: Any) -> None:
    page = Page(render_html(make()))
    assert page.tags[0] == ("html", {"lang": "en"})
    assert len(page.all("h1")) == 1
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert all(
        attrs.get("aria-hidden") == "true" or attrs.get("aria-label") for attrs in page.all("svg")
    )
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert named == set(ids)


def test_hostile_text_stays_text() -> None:
    html = render_html(cases.hostile())
    assert "<script" not in html
    assert "{{7*7}}" in html
    assert "49[red]" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;" in html


def test_a_pass_shows_what_was_measured() -> None:
    page = Page(render_html(cases.passed()))
    text = page.text.replace("\u00a0", " ")
    for part in (
        "PASS: efficientnet-lite0 for cpu-fbgemm",
        "26.4 % of 18.55 MB",
        "1.94× faster than fp32",
        "same class, 19.8 dB SNR",
        "19.8 dB ≥ 19.0 dB +0.8 dB ✓ passed",
        "top1 88.4 % → 88.2 %, 0.20 points lost on 500 samples",
        "Original over optimized, by round: 1.92 to 1.96",
        "first loss",
        "Built in 99 s, at a peak of 1.93 GB of memory",
        "python3 efficientnet-lite0-cpu-fbgemm.edgepack verify",
        "image float32, batch × 3 × 224 × 224",
        "sha256:8f14e45fceea167a5a36dedd4bea2543c1d2e3f405162738495a6b7c8d9eafb0",
        "500 from folder of pictures imagenet-crops/evaluation, with labels",
        "Hidden torch, edgepack",
    ):
        assert part in text
    assert "UNVERIFIED:" not in text


def test_a_failure_shows_what_was_missed() -> None:
    text = Page(render_html(cases.failed())).text.replace("\u00a0", " ")
    assert text.startswith("FAIL:")
    assert "9.6 dB ≥ 19.0 dB −9.4 dB ✗ missed" in text
    assert "First loss at quantize" in text
    assert "int8 is 1.12× slower than fp32 on this machine" in text
    assert "Verify it yourself" not in text


def test_unverified_cannot_be_overlooked() -> None:
    page = Page(render_html(cases.unverified()))
    assert page.all("p")[0]["class"] == "hazard"
    assert page.text.startswith("UNVERIFIED:")
    assert len(re.findall("unverified", page.text, re.IGNORECASE)) >= 5
    assert "same class" not in page.text
    assert "Do not ship it" in page.text


def test_trusted_pickle_is_told() -> None:
    report = cases.passed()
    assert "trusted and run" not in render_html(report)
    report["source"]["trusted_pickle"] = True
    report["warnings"] = []
    assert "trusted and run" in render_html(report)


def test_bars_are_to_one_scale() -> None:
    report = cases.passed()
    original, optimized = size_bars(report)
    assert original.width == 100
    assert optimized.width == pytest.approx(100 * 4902311 / 18548870)
    original, optimized = latency_bars(report)
    assert original.width == pytest.approx(100 * 6.4 / 6.71)
    assert optimized.tick == pytest.approx(100 * 3.46 / 6.71)
    report["latency"] = None
    assert latency_bars(report) == []
    assert "Not measured." in render_html(report)


@pytest.mark.parametrize(
    ("metrics", "width"),
    [
        ({"snr_db": 19.8}, 19.8),
        ({"snr_db": 140.0}, 100),
        ({"snr_db": None}, 100),
        ({"snr_db": -3.0}, 0),
        ({"snr_db": -999.0, "nonfinite": 4}, 0),
    ],
)
def test_snr_bars(metrics: dict[str, Any], width: float) -> None:
    assert snr_width(metrics) == pytest.approx(width)


def test_a_small_report_is_drawn() -> None:
    report = cases.passed()
    for key in ("inputs", "outputs", "ledger", "warnings"):
        report[key] = []
    report["samples"] = {"calibration": None, "evaluation": None}
    report["source"] = {"path": "m.onnx", "kind": "ONNX", "digest": "0" * 64}
    report["device"] = {"arch": "aarch64", "cpu": "Cortex-A53", "isa": None}
    report["memory"] = {"peak_rss_bytes": None}
    report["tools"] = {}
    del report["build"]
    for question in ("quality", "fidelity"):
        report[question].update(outputs={}, gates=[], metric=None)
    page = Page(render_html(report))
    assert "No gate was set" in page.text


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "grounds"),
    [
        ("ink", ("paper", "card", "good-soft", "bad-soft", "warn-soft")),
        ("muted", ("paper", "card", "track")),
        ("good", ("paper", "good-soft")),
        ("bad", ("paper", "bad-soft")),
        ("warn", ("paper", "card", "warn-soft")),
    ],
)
def test_text_has_contrast(scheme: int, ink: str, grounds: tuple[str, ...]) -> None:
    html = render_html(cases.passed())
    block = re.findall(r":root \{(.*?)\}", html, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
    for ground in grounds:
        low, high = sorted(_luminance(colours[name]) for name in (ink, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
