"""The report as one page that needs nothing but a browser: no network, no script, no other file.

The page escapes whatever it is given: Jinja's autoescape for markup, `printable` for characters
that steer the reader, and a content security policy that lets a browser load nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from edgepack.metrics.closeness import closeness_db
from edgepack.report import figures, findings
from edgepack.report.gates import gate_row
from edgepack.report.passes import passes

# SNR bars are full here: above it two fp32 graphs differ by rounding alone.
_FULL_DB = 100.0
# Of the instruction sets that a CPU names, those that decide how an int8 or fp16 network runs.
_ISA_PREFIXES = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "i8mm", "bf16", "neon")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: whose.
        text: the value.
        width: of the bar, 0 to 100.
        tick: where a second value stands, 0 to 100; None where there is none.
    """

    label: str
    text: str
    width: float
    tick: float | None = None


def render_html(report: Mapping[str, Any]) -> str:
    """A valid report as a self-contained page."""
    bound = _snr_bound(report)

    def missed(metrics: Mapping[str, Any]) -> bool:
        return snr_width(metrics) < 100 * min((bound or 0.0) / _FULL_DB, 1.0)

    page: str = _page().render(
        report=report,
        missed=missed,
        size_bars=size_bars(report),
        latency_bars=latency_bars(report),
        chain=passes(report),
        snr_bound=bound,
        loss=findings.first_loss(report["ledger"]),
        isa=[f for f in report["device"].get("isa") or () if f.startswith(_ISA_PREFIXES)],
    )
    return page


def size_bars(report: Mapping[str, Any]) -> list[Bar]:
    """Bytes of the original and of the optimized model, to one scale."""
    sizes = report["sizes"]
    named = (("original", sizes["original_bytes"]), ("optimized", sizes["model_bytes"]))
    most = max(value for _, value in named)
    return [Bar(name, figures.bytes_text(value), 100 * value / most) for name, value in named]


def latency_bars(report: Mapping[str, Any]) -> list[Bar]:
    """p50 of both, to one scale, with a tick at p90; empty where nothing was measured."""
    if not report["latency"]:
        return []
    named = [(label, report["latency"][key]) for label, key in _SIDES]
    most = max(max(timing["p50"], timing.get("p90") or 0) for _, timing in named)
    return [
        Bar(
            label,
            figures.ms_text(timing["p50"]),
            100 * timing["p50"] / most,
            # Half a unit inside, so that the tick at the scale's end is seen whole.
            min(99.5, 100 * timing["p90"] / most) if timing.get("p90") else None,
        )
        for label, timing in named
    ]


_SIDES = (("original", "original"), ("optimized", "model"))


def snr_width(metrics: Mapping[str, Any]) -> float:
    """The width of a stage's bar, 0 to 100: exact and 100 dB are full, not finite is empty."""
    if metrics.get("nonfinite"):
        return 0.0
    return 100 * min(max(closeness_db(metrics), 0.0), _FULL_DB) / _FULL_DB


def _snr_bound(report: Mapping[str, Any]) -> float | None:
    """The highest SNR that a gate of quality asks for, in dB; None where none does."""
    gates = report["quality"]["gates"]
    return max((gate["bound"] for gate in gates if gate["name"] == "snr_db"), default=None)


def _details(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A record's further figures that fit on a line."""
    for key, value in record["details"].items():
        if isinstance(value, bool):
            yield key.replace("_", " "), "yes" if value else "no"
        elif isinstance(value, int):
            yield key.replace("_", " "), figures.count_text(value)
        elif isinstance(value, float):
            yield key.replace("_", " "), figures.number(value)
        elif isinstance(value, str) and len(value) <= 80:
            yield key.replace("_", " "), value


def _shape(tensor: Mapping[str, Any]) -> str:
    return " × ".join(map(str, tensor["shape"])) or "scalar"


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return figures.printable(value)
    return value


@cache
def _page() -> Template:
    environment = Environment(
        loader=PackageLoader("edgepack.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("edgepack.report").joinpath("page", "report.css").read_text(encoding="utf-8")
    environment.globals.update(
        style=Markup(style),  # noqa: S704 - our own file
        findings=findings,
        gate_row=gate_row,
        snr_width=snr_width,
        shape=_shape,
        details=_details,
    )
    environment.filters.update(
        tied=figures.tied,
        bytes=figures.bytes_text,
        seconds=figures.seconds_text,
        ms=figures.ms_text,
        percent=figures.percent,
        number=figures.number,
        count=figures.count_text,
        snr=figures.snr_text,
    )
    return environment.get_template("report.html.j2")
