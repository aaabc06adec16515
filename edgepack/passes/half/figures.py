"""Figures and notes of the pass `half` for the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgepack.listing import join_names
from edgepack.passes.half.candidates import Graph
from edgepack.passes.half.options import HalfOptions
from edgepack.passes.half.placement import ISOLATED, Placement

# Reasons listed in the notes; the figures hold all of them.
SHOWN = 8


def details(
    graph: Graph, placement: Placement, options: HalfOptions, samples: int, casts: int
) -> dict[str, Any]:
    """Return the figures as JSON values: nodes by type, with reasons."""
    return {
        "margin": options.margin,
        "limit": placement.limit,
        "calibration_samples": samples,
        "nodes_half": len(placement.half),
        "nodes_float": len(placement.float_nodes),
        "nodes_quantized": len(placement.integer.difference(graph.candidates)),
        "casts": casts,
        "kept": [
            {
                "name": node.name,
                "operator": node.operator,
                "reason": node.reason,
                "value": _json_number(node.value),
            }
            for node in placement.float_nodes
        ],
        "opset": graph.opset,
    }


def _json_number(value: float | None) -> float | None:
    """Return a finite number as it is, and None otherwise: JSON has no NaN or infinity."""
    if value is None or not math.isfinite(value):
        return None
    return value


def notes(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures as sentences."""
    count, float_nodes = figures["nodes_half"], figures["kept"]
    sentences = [
        f"{count} of {count + len(float_nodes)} float nodes compute in fp16, with "
        f"{figures['casts']} Casts; their values on {figures['calibration_samples']} samples stay "
        f"below 65504 / {figures['margin']:g}."
    ]
    quantized = figures["nodes_quantized"]
    if quantized:
        sentences.append(
            f"{quantized} quantized nodes are unchanged: before opset 19 the scales of Q and DQ "
            "are float32."
        )
    # Nodes that share a reason share a sentence.
    reasons: dict[str, list[str]] = {}
    for node in float_nodes:
        if node["reason"] != ISOLATED:
            reasons.setdefault(node["reason"], []).append(node["name"])
    for reason, names in list(reasons.items())[:SHOWN]:
        sentences.append(f"Kept in fp32: {join_names(names, 4)}: {reason}.")
    if len(reasons) > SHOWN:
        sentences.append(
            f"Kept in fp32 for {len(reasons) - SHOWN} more reasons, listed in the details."
        )
    isolated = sum(node["reason"] == ISOLATED for node in float_nodes)
    if isolated:
        sentences.append(
            f"{isolated} more nodes stay in fp32: Casts would cost more than fp16 saves."
        )
    return tuple(sentences)
