"""Lists in messages: the first entries in full, and the number of the others."""

from __future__ import annotations

from collections.abc import Sequence


def join_names(names: Sequence[str], limit: int) -> str:
    """Join names with commas, and count those beyond the limit: "a, b and 3 more"."""
    text = ", ".join(names[:limit])
    if len(names) > limit:
        text += f" and {len(names) - limit} more"
    return text


def join_lines(lines: Sequence[str], limit: int) -> str:
    """Join lines, and count those beyond the limit in a line of their own: "and 3 more"."""
    text = "\n".join(lines[:limit])
    if len(lines) > limit:
        text += f"\nand {len(lines) - limit} more"
    return text
