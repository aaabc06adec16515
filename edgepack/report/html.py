"""Report as one page that needs only a browser: no network, no script, no other file.

Every text is escaped: Jinja's autoescape for markup, `printable` for control and bidirectional
characters. A content security policy keeps the browser from loading anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from edgepack.ledger import RecordDocument
from edgepack.metrics.closeness import closeness_db
from edgepack.report import figures, findings
from edgepack.report.auction import tabulate_auction
from edgepack.report.documents import Report, TimingSection
from edgepack.report.gates import format_gate
from edgepack.report.passes import tabulate_passes
from edgepack.runtime.documents import OutputMetrics, TensorDocument

# SNR at which a bar is full: above it two fp32 graphs differ by rounding alone.
_FULL_DB = 100.0
# Instruction sets that decide the speed of int8 and fp16 networks; a CPU lists many more.
_ISA_PREFIXES = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "i8mm", "bf16", "neon")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: name of the model.
        text: value as text.
        width: width of the bar, 0 to 100.
        tick: position of a second value, 0 to 100; None without one.
    """

    label: str
    text: str
    width: float
    tick: float | None = None


def render_html(report: Report) -> str:
    """Render a valid report as a self-contained page."""
    bound = _find_snr_bound(report)

    def missed(metrics: OutputMetrics) -> bool:
        # In the units of the bar, so that colour and tick agree: 19 dB is at 19 of 100.
        return snr_width(metrics) < 100 * min((bound or 0.0) / _FULL_DB, 1.0)

    page: str = _load_template().render(
        report=report,
        missed=missed,
        size_bars=size_bars(report),
        latency_bars=latency_bars(report),
        chain=tabulate_passes(report),
        auction=tabulate_auction(report),
        snr_bound=bound,
        loss=findings.find_first_loss(report["ledger"]),
        isa=_list_isa(report),
    )
    return page


def _list_isa(report: Report) -> list[str]:
    flags = report["device"].get("isa") or ()
    return [flag for flag in flags if flag.startswith(_ISA_PREFIXES)]


def size_bars(report: Report) -> list[Bar]:
    """Return bars of the bytes of the original and of the optimized model, to one scale."""
    sizes = report["sizes"]
    original, model = sizes["original_bytes"], sizes["model_bytes"]
    # The larger one fills the chart: 18 and 6 MB are bars of 100 and 33.
    most = max(original, model)
    return [
        Bar("original", figures.format_bytes(original), 100 * original / most),
        Bar("optimized", figures.format_bytes(model), 100 * model / most),
    ]


def latency_bars(report: Report) -> list[Bar]:
    """Return bars of both p50, to one scale, with a tick at p90; empty without a measurement."""
    if not report["latency"]:
        return []
    original, model = report["latency"]["original"], report["latency"]["model"]
    most = max(_find_slowest(original), _find_slowest(model))
    return [_latency_bar("original", original, most), _latency_bar("optimized", model, most)]


def _find_slowest(timing: TimingSection) -> float:
    return max(timing["p50"], timing.get("p90") or 0)


def _latency_bar(label: str, timing: TimingSection, most: float) -> Bar:
    tick = None
    if p90 := timing.get("p90"):
        # Half a unit inside, so that a tick at the end of the scale is not cut.
        tick = min(99.5, 100 * p90 / most)
    return Bar(label, figures.format_ms(timing["p50"]), 100 * timing["p50"] / most, tick)


def snr_width(metrics: OutputMetrics) -> float:
    """Return the width of a stage's bar: 19.8 dB is 19.8, exact is 100, non-finite is 0."""
    # An exact output has a closeness of infinity; the bar ends at 100 dB.
    if metrics.get("nonfinite"):
        return 0.0
    return 100 * min(max(closeness_db(metrics), 0.0), _FULL_DB) / _FULL_DB


def _find_snr_bound(report: Report) -> float | None:
    """Return the highest SNR bound of the quality gates in dB; None without one."""
    # Outputs may have bounds of their own: with 19 and 25 dB the page draws the line at 25.
    highest: float | None = None
    for gate in report["quality"]["gates"]:
        if gate["name"] == "snr_db" and (highest is None or gate["bound"] > highest):
            highest = gate["bound"]
    return highest


def _list_details(record: RecordDocument) -> Iterator[tuple[str, str]]:
    """Yield the label and text of a record's details that fit on a line."""
    for key, value in record["details"].items():
        text = _format_detail(value)
        if text is not None:
            yield key.replace("_", " "), text


def _format_detail(value: object) -> str | None:
    # bool comes first: it is a subclass of int.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return figures.format_count(value)
    if isinstance(value, float):
        return figures.format_number(value)
    if isinstance(value, str) and len(value) <= 80:
        return value
    return None


def _format_shape(tensor: TensorDocument) -> str:
    return " × ".join(map(str, tensor["shape"])) or "scalar"


def _finalize(value: object) -> object:
    # Runs on every expression of the template, before autoescape.
    if isinstance(value, str) and not isinstance(value, Markup):
        return figures.printable(value)
    return value


@cache
def _load_template() -> Template:
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
        style=Markup(style),  # noqa: S704 - from this package
        findings=findings,
        format_gate=format_gate,
        snr_width=snr_width,
        shape=_format_shape,
        details=_list_details,
    )
    environment.filters.update(
        tied=figures.tie_units,
        bytes=figures.format_bytes,
        seconds=figures.format_seconds,
        ms=figures.format_ms,
        percent=figures.format_percent,
        number=figures.format_number,
        count=figures.format_count,
        snr=figures.format_snr,
    )
    return environment.get_template("report.html.j2")
