"""Terminal tables of the instructions of one inference on emulated CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepack.report.figures import fit, format_count, format_percent

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
INT8_INSTRUCTIONS = {"aarch64": "sdot, udot or int8 matrix", "x86_64": "VNNI"}


def render_instructions(document: Mapping[str, Any], console: Console) -> None:
    """Print a table for each CPU, then remarks on its figures.

    Args:
        document: {"devices": [`edgepack.device.instructions.Counted.to_json()`, ...]}.
        console: signs become ASCII if its encoding lacks them.
    """
    for index, result in enumerate(document["devices"]):
        if index:
            console.print()
        _print_table(result, console)
        for line in _describe_counts(result):
            console.print(Text(fit(line, console.encoding)), soft_wrap=True)


def _list_counts(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the counts by heading; the other model's only if it was counted."""
    models = {"this bundle": result["model"]}
    if result["original"]:
        models["the other model"] = result["original"]
    return models


def _print_table(result: Mapping[str, Any], console: Console) -> None:
    title = f"One inference on {result['cpu']}: {result['unit']}"
    console.print(Text(fit(title, console.encoding), style="bold"), soft_wrap=True)
    models = _list_counts(result)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
        table.add_column("", justify="right", style="dim")
    for name, title in CLASSES.items():
        cells = []
        for counts in models.values():
            instructions = counts["classes"][name]
            cells += [format_count(instructions), format_percent(instructions / counts["total"])]
        table.add_row(title, *cells)
    # Every model has two columns, count and share; a total has no share.
    totals: list[str] = []
    for counts in models.values():
        totals += [format_count(counts["total"]), ""]
    table.add_row("total", *totals, style="bold")
    console.print(table)


def _describe_counts(result: Mapping[str, Any]) -> list[str]:
    lines = []
    spread, products = 0.0, "the same"
    for name, counts in _list_counts(result).items():
        # "this bundle computes by sdot 1,204,224, fmla 9,408"
        kinds = [f"{kind} {format_count(number)}" for kind, number in counts["compute"].items()]
        lines.append(f"{name} computes by {', '.join(kinds) or 'no SIMD products'}")
        spread = max(spread, counts["spread"])
        if not counts["exact"]:
            products = "NOT the same"
    answer = "no"
    if result["model"]["dot_products"]:
        answer = "yes"
    lines.append(f"int8 instructions ({INT8_INSTRUCTIONS[result['arch']]}) executed: {answer}")
    # The ratio is the other model's count over this bundle's; None without another model.
    if ratio := result["ratio"]:
        change = f"{ratio:.2f}x fewer"
        if ratio < 1:
            change = f"{1 / ratio:.2f}x MORE"
        lines.append(f"this bundle takes {change} instructions than the other model")
    lines.append(
        f"minimum of {result['repeats']} runs, which differ by {format_percent(spread, 2)}; "
        f"product counts are {products} in each run"
    )
    return lines
