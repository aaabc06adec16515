"""Counted instructions: what is made of the regions, and how it is shown."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from edgepack.device.instructions import Counted, Counts
from edgepack.device.instructions.counts import Region, summary
from edgepack.report import render_instructions

NOTHING = dict.fromkeys(("dot", "matrix", "intmul", "fma", "simd", "branch"), 0)


def region(**counts: int) -> Region:
    """A region by "class__kind"."""
    return {tuple(name.split("__")): ran for name, ran in counts.items()}  # type: ignore[misc]


def test_the_smallest_less_what_the_marks_cost() -> None:
    empty = region(dot__udot=0, fma__fmla=0, memory__other=3, integer__other=7)
    found = summary(
        empty,
        [
            region(dot__udot=40, fma__fmla=0, memory__other=63, integer__other=57),
            region(dot__udot=40, fma__fmla=0, memory__other=43, integer__other=27),
        ],
    )
    assert found.total == 100
    assert found.spread == 0.5
    assert found.classes == {"dot": 40, "fma": 0, "memory": 40, "integer": 20}
    assert found.compute == {"udot": 40}
    assert found.exact


def test_products_that_differ_are_not_exact() -> None:
    empty = region(dot__udot=0, integer__other=0)
    different = [region(dot__udot=40, integer__other=9), region(dot__udot=41, integer__other=9)]
    assert not summary(empty, different).exact


def counts(total: int, *, exact: bool = True, **classes: int) -> Counts:
    rest = total - sum(classes.values())
    of_all = {**NOTHING, **classes, "memory": rest, "integer": 0}
    compute = {"udot": classes["dot"]} if classes.get("dot") else {}
    return Counts(total, 0.0004, of_all, compute, exact)


def shown(*counted: Counted, encoding: str = "utf-8") -> str:
    document: dict[str, Any] = {"devices": [found.to_json() for found in counted]}
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    render_instructions(document, Console(file=buffer, width=80))
    buffer.seek(0)
    return buffer.read()


def test_fewer_than_the_other_model() -> None:
    text = shown(Counted("neoverse-n1", counts(2_000_000, dot=500_000), counts(3_000_000)))
    assert "One inference on neoverse-n1: instructions, emulated; not time" in text
    assert "this bundle takes 1.50x fewer instructions than the other model" in text
    assert re.search(r"^int8 dot products +500,000  25.0 % +0 +0.0 %$", text, re.M)
    assert "int8 instructions (sdot, udot or int8 matrix) executed: yes" in text
    assert "this bundle computes by udot 500,000" in text
    assert "the other model computes by no SIMD products" in text
    assert "differ by 0.04 %; product counts are the same in each run" in text
    assert "faster" not in text


def test_more_than_the_other_model() -> None:
    text = shown(Counted("Haswell", counts(4_000_000), counts(2_000_000, exact=False)))
    assert "this bundle takes 2.00x MORE instructions than the other model" in text
    assert "int8 instructions (VNNI) executed: no" in text
    assert "product counts are NOT the same in each run" in text


def test_without_another_model_nothing_is_compared() -> None:
    text = shown(
        *(Counted(cpu, counts(100), None) for cpu in ("cortex-a53", "cortex-a72")),
        encoding="ascii",
    )
    assert "other model" not in text
    assert text.count("One inference on") == 2
