"""Formatting of numbers and foreign text, shared by the terminal and the page.

Rounding never flatters: a share below one is not printed as 100 %, and two values that differ are
printed with enough digits to show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# Re-exported: report code imports every text helper from this module.
from edgepack.runtime.documents import MetricResult, OutputMetrics
from edgepack.runtime.streams import printable as printable

# Equal to `runtime.parity.metrics.SNR_LIMIT`, whose module imports numpy; a test compares the two.
SNR_LIMIT = 999.0
# Metric of edgepack's own -> its name in headings and labels.
METRIC_LABELS = {"top1": "Top-1", "top5": "Top-5"}
# Metrics of the build host that are shares, as the counted accuracies are.
_SHARES = ("accuracy", "agreement", "auroc", "cer", "f1", "map", "miou", "wer", *METRIC_LABELS)
_UNITS = ("B", "kB", "MB", "GB", "TB")
# Replacements for consoles without UTF-8, chosen to keep the meaning of a figure.
_ASCII = str.maketrans(
    {
        "→": "->", "×": "x", "≥": ">=", "≤": "<=", "✓": "+", "✗": "x", "·": "-", "–": "-",
        "…": "...", "−": "-", "↺": "=", "●": "*", "▲": "!", "\u00a0": " ",
    }
)  # fmt: skip
# A space between a digit and a unit, such as that of "19.8 dB" or "2 of 4".
_UNIT = re.compile(r"(?<=\d) (?=(?:B|kB|MB|GB|TB|ms|s|min|h|dB|%|points?|thread|of)\b|%)")
# Least value and decimals, for three significant digits; the bounds lie where rounding carries:
# 9.994 is "9.99", 9.995 is "10.0".
_MS_DECIMALS = ((99.95, 0), (9.995, 1), (0.1, 2))
_COUNT_DECIMALS = ((99.95, 0), (9.995, 1))


def fit(text: str, encoding: str) -> str:
    """Return `text` in the characters of `encoding`: signs become ASCII, the rest is escaped."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def tie_units(text: str) -> str:
    """Tie numbers to their units with no-break spaces: "19.8 dB" stays on one line."""
    return _UNIT.sub("\u00a0", text)


def format_bytes(count: float | None) -> str:
    """Format bytes in decimal units: 18.55 MB is 18,550,000 bytes. Empty for None."""
    if count is None:
        return ""
    value, unit = float(count), 0
    # From 999.995 on two decimals would print 1000.00.
    while value >= 999.995 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{value:.0f} B"
    return f"{value:.2f} {_UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """Format wall-clock time: 0.3 s, 48 s, 3 min 20 s, 1 h 05 min."""
    # As for latencies, the bounds lie where rounding carries: 9.96 s is "10 s".
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 100:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def format_ms(ms: float | None) -> str:
    """Format a latency with three significant digits. Empty for None."""
    if ms is None:
        return ""
    return f"{ms:.{_decimals(ms, _MS_DECIMALS, 4)}f} ms"


def _decimals(value: float, steps: Sequence[tuple[float, int]], least: int) -> int:
    """Return the decimals of the first step that `value` reaches, else `least`."""
    for bound, decimals in steps:
        if value >= bound:
            return decimals
    return least


def format_percent(share: float, digits: int = 1) -> str:
    """Format a share in per cent. 0.99996 is 99.996 %, never 100.0 %; 0.00001 is not 0.0 %."""
    # A share of 0.9996 is 99.96 % at one digit more, and 0.0004 is 0.04 %; six digits end it.
    while digits < 6 and (
        (share < 1 and round(share * 100, digits) >= 100)
        or (share > 0 and round(share * 100, digits) <= 0)
    ):
        digits += 1
    return f"{share * 100:.{digits}f} %"


def format_decibel(snr_db: float, digits: int = 1) -> str:
    """Format a signal-to-noise ratio."""
    return f"{snr_db:.{digits}f} dB"


def format_points(value: float, digits: int = 2) -> str:
    """Format a difference of two percentages."""
    # A value that rounds to zero has no sign: -0.0004 is "0.00 points".
    return f"{round(value, digits) + 0.0:.{digits}f} points"


def format_number(value: float, digits: int = 4) -> str:
    """Format a bare value with `digits` significant digits."""
    return f"{value:.{digits}g}"


def format_count(value: int) -> str:
    """Format a count with separators: 4,652,008."""
    return f"{value:,}"


def format_short_count(value: int) -> str:
    """Format a large count with three significant digits: 4.65 M, 386 M, 12.0 k."""
    scaled, unit = float(value), ""
    for larger in ("k", "M", "G", "T"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, larger
    if not unit:
        return f"{scaled:.0f}"
    return f"{scaled:.{_decimals(scaled, _COUNT_DECIMALS, 2)}f} {unit}"


def format_plural(value: int, noun: str) -> str:
    """Format a count with its noun: 1 gate, 2 gates."""
    ending = "" if value == 1 else "s"
    return f"{value:,} {noun}{ending}"


def format_snr(metrics: OutputMetrics) -> str:
    """Format the SNR of one output; in words where it is exact or undefined."""
    snr = metrics["snr_db"]
    if metrics.get("nonfinite"):
        return f"{metrics['nonfinite']:,} not finite"
    if metrics.get("compared") == "equality":
        share = metrics["top1_agreement"]
        if share in (None, 1.0):
            return "equal"
        return f"{format_percent(share)} equal"
    if snr is None:
        return "exact"
    if snr > -SNR_LIMIT:
        return format_decibel(snr)
    return "no signal"


def is_share(metric: MetricResult) -> bool:
    """Return True for a metric that is written in per cent: a share from 0 to 1."""
    pair = metric["model"], metric["original"]
    return is_share_name(metric["name"]) and all(0 <= value <= 1 for value in pair)


def is_share_name(name: str) -> bool:
    """Return True for the name of a metric of edgepack's that is a share."""
    return name in _SHARES


def format_mark(passed: bool) -> tuple[str, str]:
    """Return the sign of a result and its style on a terminal."""
    if passed:
        return "✓", "green"
    return "✗", "red"


def format_apart(
    text: Callable[[float, int], str], first: float, second: float, digits: int
) -> tuple[str, str]:
    """Format both values by `text`, with enough digits to show that they differ.

    18.996 and 19.0 at one digit would both print 19.0 dB; the result is 18.996 dB and 19.000 dB.
    """
    pair = text(first, digits), text(second, digits)
    while first != second and pair[0] == pair[1] and digits < 12:
        digits += 1
        pair = text(first, digits), text(second, digits)
    return pair
