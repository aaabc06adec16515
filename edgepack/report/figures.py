"""Figures and foreign text as people read them: the same words in the terminal and on the page.

Rounding never flatters: a share below one is not printed as 100 %, and two values that differ are
printed with as many digits as it takes to see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# What prints a report takes this from here, beside the other forms of text.
from edgepack.runtime.streams import printable as printable

# As `runtime.parity.metrics.SNR_LIMIT`, whose module brings numpy; a test holds them together.
SNR_LIMIT = 999.0
_UNITS = ("B", "kB", "MB", "GB", "TB")
_ASCII = str.maketrans(
    {
        "→": "->", "×": "x", "≥": ">=", "≤": "<=", "✓": "+", "✗": "x", "·": "-", "–": "-",
        "…": "...", "−": "-", "↺": "=", "●": "*", "▲": "!", "\u00a0": " ",
    }
)  # fmt: skip
_UNIT = re.compile(r"(?<=\d) (?=(?:B|kB|MB|GB|TB|ms|s|min|h|dB|%|points?|thread|of)\b|%)")


def fit(text: str, encoding: str) -> str:
    """`text` in the characters of `encoding`: signs become ASCII, the rest is escaped."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def tied(text: str) -> str:
    """`text` with numbers tied to their units, so that no line breaks between them."""
    return _UNIT.sub("\u00a0", text)


def bytes_text(count: float | None) -> str:
    """Decimal units: 18.55 MB is 18,550,000 bytes. Empty for None."""
    if count is None:
        return ""
    value, unit = float(count), 0
    while value >= 999.995 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """Wall-clock time: 0.3 s, 48 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ms_text(ms: float | None) -> str:
    """A latency with three significant digits. Empty for None."""
    if ms is None:
        return ""
    digits = 0 if ms >= 99.95 else 1 if ms >= 9.995 else 2 if ms >= 0.1 else 4
    return f"{ms:.{digits}f} ms"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent. 0.99996 is 99.996 %, never 100.0 %; 0.00001 is not 0.0 %."""
    while digits < 6 and (
        (share < 1 and round(share * 100, digits) >= 100)
        or (share > 0 and round(share * 100, digits) <= 0)
    ):
        digits += 1
    return f"{share * 100:.{digits}f} %"


def decibel(snr_db: float, digits: int = 1) -> str:
    """A signal-to-noise ratio."""
    return f"{snr_db:.{digits}f} dB"


def points(value: float, digits: int = 2) -> str:
    """A difference of two percentages."""
    return f"{value:.{digits}f} points"


def number(value: float, digits: int = 4) -> str:
    """A bare value with so many significant digits."""
    return f"{value:.{digits}g}"


def count_text(value: int) -> str:
    """A number of things: 4,652,008."""
    return f"{value:,}"


def short_count(value: int) -> str:
    """A large number with three significant digits: 4.65 M, 386 M, 12.0 k."""
    scaled, unit = float(value), ""
    for larger in ("k", "M", "G", "T"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, larger
    digits = 0 if not unit or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {unit}".rstrip()


def plural(value: int, noun: str) -> str:
    """1 gate, 2 gates."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def snr_text(metrics: Mapping[str, Any]) -> str:
    """The SNR of one output; in words where it is exact or no SNR can be told."""
    snr = metrics["snr_db"]
    if metrics.get("nonfinite"):
        return f"{metrics['nonfinite']:,} not finite"
    if metrics.get("compared") == "equality":
        share = metrics["top1_agreement"]
        return "equal" if share in (None, 1.0) else f"{percent(share)} equal"
    if snr is None:
        return "exact"
    return decibel(snr) if snr > -SNR_LIMIT else "no signal"


def apart(
    text: Callable[[float, int], str], first: float, second: float, digits: int
) -> tuple[str, str]:
    """Both values by `text`, with as many digits as it takes to tell them apart."""
    pair = text(first, digits), text(second, digits)
    while first != second and pair[0] == pair[1] and digits < 12:
        digits += 1
        pair = text(first, digits), text(second, digits)
    return pair
