"""Cautions: a bundle that passed its gates and still costs more than the model did."""

from __future__ import annotations

from edgepack.report.documents import Caution, Report
from edgepack.report.figures import format_percent

# Two medians closer than this are within measurement noise.
NOISE = 0.05
# Tensor names and shapes alone may add this share of bytes, so it is not called larger.
NAMES = 0.01
# A size reduction smaller than this is not called a gain.
LEAST = 0.05


def list_cautions(report: Report) -> list[Caution]:
    """Return a code, a ratio and a short text for every cost that a verdict must not hide.

    `slower`: slower than the original in fp32. `larger`: more bytes than the model file. `no-gain`:
    the chain computes in fewer bits and made the model neither smaller nor faster.

    Args:
        report: a valid report; cautions already in it are ignored.
    """
    # A speed of 0.57 is slower, a size of 1.20 larger; 0.98 with fp16 is no gain.
    speed, size = _read_speed(report), report["sizes"]["ratio"]
    result: list[Caution] = []
    if speed is not None and speed < 1 - NOISE:
        text = f"slower than fp32: {format_factor(report, speed)}"
        result.append({"code": "slower", "ratio": speed, "text": text})
    if size > 1 + NAMES:
        text = f"larger than {name_size_basis(report)}: {size:.2f}×"
        result.append({"code": "larger", "ratio": size, "text": text})
    elif size > 1 - LEAST and _uses_fewer_bits(report) and (speed is None or speed < 1 + NOISE):
        # "98.8 % of the bytes of model.onnx and no faster", after "PASS, but".
        text = f"{format_percent(size)} of the bytes of {name_size_basis(report)}"
        if not result and speed is not None:
            text += " and no faster"
        result.append({"code": "no-gain", "ratio": size, "text": text})
    return result


def name_size_basis(report: Report) -> str:
    """Name the file that the size is compared with; older reports do not record it."""
    basis = report["sizes"].get("basis")
    if basis is None:
        return "the original"
    if basis == "export":
        return "its fp32 graph"
    return str(report["source"]["path"])


def format_factor(report: Report, ratio: float) -> str:
    """Format a speed-up or slow-down, and mark it if the measurement was disturbed."""
    if list_disturbances(report):
        return f"about {ratio:.1f}×, disturbed"
    return f"{ratio:.2f}×"


def list_disturbances(report: Report) -> list[str]:
    """Return the reasons not to rely on the latency; empty on a quiet machine."""
    latency = report["latency"]
    if not latency:
        return []
    return list(latency.get("disturbed", ()))


def _read_speed(report: Report) -> float | None:
    """Return the speed-up; None if it was not measured or no pass changed the graph."""
    # With one measured record there is the original alone: fp32 against itself.
    passes = [record for record in report["ledger"] if record.get("measured")]
    if not report["latency"] or len(passes) == 1:
        return None
    return float(report["latency"]["ratio"])


def _uses_fewer_bits(report: Report) -> bool:
    return str(report["target"].get("precision", "fp32")) != "fp32"
