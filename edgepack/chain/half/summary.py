"""What the pass `half` tells the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgepack.chain.half.graph import Graph
from edgepack.chain.half.options import HalfOptions
from edgepack.chain.half.place import ALONE, Placement

# Reasons that are told in full; the details hold all.
SHOWN = 8


def details(
    graph: Graph, placement: Placement, options: HalfOptions, samples: int, casts: int
) -> dict[str, Any]:
    """The figures, as JSON values: how many nodes compute in what, and why."""
    return {
        "margin": options.margin,
        "limit": placement.limit,
        "calibration_samples": samples,
        "nodes_half": len(placement.half),
        "nodes_float": len(placement.kept),
        "nodes_quantized": len(placement.integer.difference(graph.candidates)),
        "casts": casts,
        "kept": [
            {
                "name": kept.name,
                "operator": kept.operator,
                "reason": kept.reason,
                "value": kept.value
                if kept.value is not None and math.isfinite(kept.value)
                else None,
            }
            for kept in placement.kept
        ],
        "opset": graph.opset,
    }


def notes(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """The same in sentences."""
    count, kept = figures["nodes_half"], figures["kept"]
    said = [
        f"{count} of {count + len(kept)} float nodes compute in fp16, {figures['casts']} Casts "
        f"where types meet; ranges measured on {figures['calibration_samples']} samples, each at "
        f"least {figures['margin']:g} times below 65504."
    ]
    quantized = figures["nodes_quantized"]
    if quantized:
        said.append(
            f"{quantized} nodes of the quantized part stay as they are: before opset 19 the "
            "scales of Q and DQ are float32."
        )
    reasons: dict[str, list[str]] = {}
    for node in kept:
        if node["reason"] != ALONE:
            reasons.setdefault(node["reason"], []).append(node["name"])
    for reason, names in list(reasons.items())[:SHOWN]:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        said.append(f"Kept fp32: {shown}: {reason}.")
    if len(reasons) > SHOWN:
        said.append(f"Kept fp32 for {len(reasons) - SHOWN} more reasons; the details hold them.")
    alone = sum(node["reason"] == ALONE for node in kept)
    if alone:
        said.append(f"{alone} more between those stay fp32: Casts would cost more than they save.")
    return tuple(said)
