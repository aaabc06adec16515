"""Instructions of one inference on emulated CPUs, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepack.report.figures import count_text, fit, percent

CLASSES = {
    "dot": "int8 dot products",
    "matrix": "int8 matrix products",
    "intmul": "other SIMD integer products",
    "fma": "floating-point multiply-adds",
    "simd": "other SIMD and floating point",
    "memory": "loads and stores",
    "branch": "branches",
    "integer": "other integer",
}
MADE_FOR_INT8 = {"aarch64": "sdot, udot or int8 matrix", "x86_64": "VNNI"}


def render_instructions(document: Mapping[str, Any], console: Console) -> None:
    """Print a table for each CPU, then what its figures tell.

    Args:
        document: {"devices": [as `edgepack.device.instructions.Counted.to_json` gives it]}.
        console: signs become ASCII where its encoding lacks them.
    """
    for index, found in enumerate(document["devices"]):
        if index:
            console.print()
        _table(found, console)
        for line in _remarks(found):
            console.print(Text(fit(line, console.encoding)), soft_wrap=True)


def _table(found: Mapping[str, Any], console: Console) -> None:
    title = f"One inference on {found['cpu']}: {found['unit']}"
    console.print(Text(fit(title, console.encoding), style="bold"), soft_wrap=True)
    columns = {"this bundle": found["model"], "the other model": found["original"]}
    shown = {name: counts for name, counts in columns.items() if counts}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
        table.add_column("", justify="right", style="dim")
    for name, title in CLASSES.items():
        cells = []
        for counts in shown.values():
            instructions = counts["classes"][name]
            cells += [count_text(instructions), percent(instructions / counts["total"])]
        table.add_row(title, *cells)
    totals = [count_text(counts["total"]) for counts in shown.values()]
    table.add_row("in all", *(cell for total in totals for cell in (total, "")), style="bold")
    console.print(table)


def _remarks(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, counts in (("this bundle", found["model"]), ("the other model", found["original"])):
        if counts:
            ran = ", ".join(f"{kind} {count_text(n)}" for kind, n in counts["compute"].items())
            lines.append(f"{name} computes by {ran or 'no SIMD products'}")
    lines.append(
        f"instructions made for int8 ({MADE_FOR_INT8[found['arch']]}) ran: "
        + ("yes" if found["model"]["dot_products"] else "no")
    )
    if found["ratio"]:
        ratio = found["ratio"]
        told = f"{ratio:.2f}x fewer" if ratio >= 1 else f"{1 / ratio:.2f}x MORE"
        lines.append(f"this bundle takes {told} instructions than the other model")
    every = [counts for counts in (found["model"], found["original"]) if counts]
    spread = percent(max(counts["spread"] for counts in every), 2)
    exact = "the same in each" if all(c["exact"] for c in every) else "NOT the same in each"
    lines.append(
        f"the smallest of {found['repeats']}, which differ by {spread}; the products are {exact}"
    )
    return lines
