"""Reports to draw: a build that passed, and the same build where it failed or proved nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from edgepack.runtime.parity.verdict import RANDOM, RANDOM_TEXT

EXAMPLE = Path(__file__).with_name("report_example.json")


def passed() -> dict[str, Any]:
    """EfficientNet-Lite0 for cpu-fbgemm."""
    report: dict[str, Any] = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return report


def failed() -> dict[str, Any]:
    """The same, where quantization lost too much and int8 is slower."""
    report = passed()
    quality = report["quality"]
    quality["outputs"]["logits"].update(snr_db=9.63, top1_agreement=0.866)
    quality["metric"].update(model=0.846, drop_points=3.8)
    for gate, measured in zip(quality["gates"], (9.63, 0.866, 0.846 / 0.884), strict=True):
        gate.update(measured=measured, passed=False)
    quality["passed"] = False
    for record in report["ledger"]:
        if record["stage"] == "quantize":
            record["parity"]["logits"].update(snr_db=9.41)
    report["latency"]["model"].update(p50=7.2, p90=7.4)
    report["latency"].update(ratio=6.4 / 7.2)
    del report["latency"]["rounds"]
    reasons = [{"code": "gate-missed", "text": "logits: SNR 9.6 dB (at least 19 dB)"}]
    return {**report, "verdict": "FAIL", "reasons": reasons, "slower": True}


def unverified() -> dict[str, Any]:
    """The same, calibrated on random numbers."""
    report = passed()
    report["samples"]["calibration"].update(origin="random numbers", digest=None)
    return {**report, "verdict": "UNVERIFIED", "reasons": [{"code": RANDOM, "text": RANDOM_TEXT}]}


def unrun() -> dict[str, Any]:
    """The same, on a host that could not run the target."""
    reason = {
        "code": "not-on-target",
        "text": "never run on aarch64: the answers are those of this x86_64 host",
        "remedy": "python3 efficientnet-lite0-arm-qnnpack.edgepack verify",
    }
    return {**passed(), "verdict": "UNVERIFIED", "reasons": [reason], "stands_in": True}


def chained() -> dict[str, Any]:
    """The same, pruned before, and with two layers back to float after quantize."""
    report = passed()
    steps = (
        ("simplify", 18548870, 4652008, 385_891_968, 1.0, 0.884, 119.8, []),
        ("prune", 13012104, 3262114, 270_124_377, 1.32, 0.871, 24.1, []),
        ("quantize", 3421508, 3262114, 270_124_377, 2.41, 0.842, 9.6, ["snr_db", "metric_ratio"]),
        ("repair", 4107662, 3262114, 270_124_377, 2.2, 0.8712, 19.8, []),
    )
    known = {record["stage"]: record for record in report["ledger"]}
    rows: list[dict[str, Any]] = []
    for name, size, parameters, macs, ratio, top1, snr, missed in steps:
        quality = copy.deepcopy({k: report["quality"][k] for k in ("samples", "outputs", "metric")})
        quality["outputs"]["logits"].update(snr_db=snr)
        quality["metric"].update(model=top1, drop_points=100 * (0.884 - top1))
        measured: dict[str, Any] = {
            "macs": macs,
            "quality": quality,
            "missed": [
                {"name": gate, "output": "logits", "bound": 1e3, "measured": 1.0, "passed": False}
                for gate in missed
            ],
            "latency": {"p50": 6.4 / ratio, "original": 6.4, "ratio": ratio, "queries": 40},
            "change": None,
        }
        record = {**known.get(name, known["quantize"]), "stage": name, "bytes": size}
        record.update(parameters=parameters, measured=measured)
        if rows:
            last = rows[-1]
            measured["change"] = {
                "bytes": size - last["bytes"],
                "parameters": parameters - last["parameters"],
                "macs": macs - last["measured"]["macs"],
                "snr_db": snr - last["measured"]["quality"]["outputs"]["logits"]["snr_db"],
                "metric_points": 100 * (top1 - last["measured"]["quality"]["metric"]["model"]),
                "latency": last["measured"]["latency"]["ratio"] / ratio - 1,
            }
        if name == "repair":
            record["notes"] = ["2 of 51 layers back to float: +2.92 points, +10 % time."]
        rows.append(record)
    place = [record["stage"] for record in report["ledger"]].index("simplify")
    report["ledger"][place : place + 2] = rows
    return report


def hostile() -> dict[str, Any]:
    """The same, with every foreign string set on breaking out."""
    return _poison(passed())


ATTACK = "<script>alert(1)</script>\"'&{{7*7}}[red]\x1b[2J\u202e"
_OURS = {"format", "verdict", "code", "created", "status", "on", "kind", "unit", "length"}
_OURS |= {"relation"}


def _poison(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        # Keys that are names of the user's: outputs, tools, details.
        free = key in ("outputs", "parity", "tools", "details")
        return {
            (k + ATTACK if free else k): copy.deepcopy(v)
            if k in _OURS
            else _poison(v, "" if free else k)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_poison(v) for v in value]
    if isinstance(value, str):
        return value + ATTACK
    return value
