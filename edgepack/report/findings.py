"""What a report says in sentences: the verdict, what was lost and where, how fast it is."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.metrics.closeness import closeness_db
from edgepack.report.cautions import disturbed, size_basis
from edgepack.report.figures import (
    apart,
    bytes_text,
    decibel,
    number,
    percent,
    plural,
    points,
    printable,
    snr_text,
)
from edgepack.report.gates import GateRow, gate_row

# Above this two fp32 graphs differ by rounding alone.
ROUNDING_DB = 90.0
LOSS_DB = 3.0
TITLES = {"pass": "PASS", "fail": "FAIL", "unproven": "NOT PROVEN"}
QUESTIONS = {
    "quality": "How far is the optimized model from the original?",
    "fidelity": "Does this device compute what the build host computed?",
}
UNPROVEN = (
    "Nothing about real inputs is proved: the model was calibrated on random numbers. "
    "Its gates and figures are no evidence for what it does with real data. Do not ship it."
)


@dataclass(frozen=True)
class OnCpu:
    """What an emulated CPU answered, as text.

    Attributes:
        cpu: its name.
        answer: against the build host's answers.
        samples: on what.
        passed: whether its gates passed.
    """

    cpu: str
    answer: str
    samples: str
    passed: bool


@dataclass(frozen=True)
class Loss:
    """Where SNR fell.

    Attributes:
        stage: of the ledger.
        output: of the model.
        before: SNR before the stage in dB; None where exact, or at the rounding of fp32.
        after: SNR after the stage in dB.
        text: the same in words.
    """

    stage: str
    output: str
    before: float | None
    after: float
    text: str

    def __str__(self) -> str:
        before = "fp32's rounding" if self.before is None else decibel(self.before)
        return f"{self.stage}: SNR of {self.output} fell from {before} to {self.text}"


def first_loss(records: Iterable[Mapping[str, Any]], drop_db: float = LOSS_DB) -> Loss | None:
    """The first stage after which some output's SNR is more than `drop_db` lower; None if none.

    Args:
        records: the report's ledger.
        drop_db: in dB; SNRs above 90 dB count as equal.
    """
    before: dict[str, float] = {}
    for record in records:
        losses = []
        for output, metrics in (record["parity"] or {}).items():
            snr = min(closeness_db(metrics), ROUNDING_DB)
            last = before.get(output, ROUNDING_DB)
            if last - snr > drop_db:
                known = None if last >= ROUNDING_DB else last
                losses.append(Loss(record["stage"], output, known, snr, snr_text(metrics)))
            before[output] = snr
        if losses:
            return min(losses, key=lambda loss: loss.after)
    return None


def worst(outputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The metrics of the output that is furthest from its reference; None where there is none.

    Values that are not finite are worse than any SNR; a null SNR without them is exact.
    """
    return min(outputs.values(), key=closeness_db, default=None)


def gates(report: Mapping[str, Any]) -> list[GateRow]:
    """All gates of both questions, in order."""
    return [gate_row(gate) for name in QUESTIONS for gate in report[name]["gates"]]


def where(question: Mapping[str, Any]) -> str:
    """On what a question was answered: "500 evaluation samples"."""
    return plural(question["samples"], f"{question['on']} sample")


def verdict(report: Mapping[str, Any]) -> str:
    """The verdict in plain English: what was proved, and on what."""
    if report["verdict"] == "unproven":
        return UNPROVEN
    rows = gates(report)
    decisive = [row for row in rows if row.decisive]
    missed = sum(not row.passed for row in decisive)
    gate = "gate" if len(decisive) == len(rows) else "decisive gate"
    if report["verdict"] == "fail":
        return (
            f"{missed} of {plural(len(decisive), gate)} missed. {_quality(report)} "
            "This bundle was not delivered: it stands aside for inspection only."
        )
    return f"Every {gate} passed ({len(decisive)}). {_quality(report)} {_fidelity(report)}"


def title(report: Mapping[str, Any]) -> str:
    """Return the verdict in a few words: "PASS, but slower than fp32: 0.57×"."""
    name = TITLES[report["verdict"]]
    texts = [caution["text"] for caution in report.get("cautions", ())]
    return f"{name}, but {' and '.join(texts)}" if texts and report["verdict"] == "pass" else name


def size(report: Mapping[str, Any]) -> str:
    """Return the share of the original's bytes, and of a checkpoint what its file has."""
    sizes = report["sizes"]
    text = f"{percent(sizes['ratio'])} of {size_basis(report)}"
    if sizes.get("basis") == "export":
        text += f"; {report['source']['path']} has {bytes_text(sizes['file_bytes'])}"
    return text


def forms(report: Mapping[str, Any]) -> str:
    """Return the forms that quantization gave the layers; empty where it chose none."""
    records = [record for record in report["ledger"] if record["stage"] == "quantize"]
    details: Mapping[str, Any] = records[0]["details"] if records else {}
    if details.get("mode") != "static" or "layers_dynamic" not in details:
        return ""
    counts = [
        (details["layers_quantized"], "in static int8"),
        (len(details["layers_dynamic"]), "in int8 by ranges of run time"),
        (len(details["layers_weights"]), "with int8 weights and float arithmetic"),
        (len(details["layers_float"]), "in float"),
    ]
    if not (counts[1][0] or counts[2][0]):
        return ""
    return "Layers: " + ", ".join(f"{count} {form}" for count, form in counts if count) + "."


def _quality(report: Mapping[str, Any]) -> str:
    question = report["quality"]
    metrics = worst(question["outputs"])
    if metrics is None:
        return ""
    said = []
    share = metrics.get("top1_agreement")
    if share is not None and metrics.get("compared") != "equality":
        said.append(f"picks the original's class for {percent(share)}")
    if metric := question["metric"]:
        model, original = _values(metric)
        said.append(f"reaches a {metric['name']} of {model} against {original}")
    said.append(_distance(metrics))
    listed = ", ".join(said[:-1]) + (" and " if len(said) > 1 else "") + said[-1]
    return f"On {where(question)} the optimized model {listed}."


def _distance(metrics: Mapping[str, Any]) -> str:
    if metrics.get("nonfinite"):
        return "gives values that are not finite"
    if metrics.get("compared") == "equality":
        return f"gives values of which {snr_text(metrics)} the original's"
    if metrics["snr_db"] is None:
        return "gives the original's values exactly"
    if metrics["snr_db"] < 0:
        return f"has more error than signal (SNR {snr_text(metrics)})"
    return f"keeps its error {decibel(metrics['snr_db'])} below the signal"


def _values(metric: Mapping[str, Any]) -> tuple[str, str]:
    """The metric of the model and of the original, told apart; per cent where both are shares."""
    pair = metric["model"], metric["original"]
    if all(0 <= value <= 1 for value in pair):
        return apart(percent, *pair, digits=1)
    return apart(number, *pair, digits=4)


def _fidelity(report: Mapping[str, Any]) -> str:
    question = report["fidelity"]
    metrics = worst(question["outputs"])
    if metrics is None:
        return ""
    exact = _exact(question)
    answer = (
        "the build host's answers bit for bit"
        if exact
        else "the build host's answers, equal in value"
        if closeness_db(metrics) == math.inf
        else f"the build host's answers at an SNR of {snr_text(metrics)}"
    )
    place = f"On {question['device']}," if "device" in question else "Run through its own loader,"
    said = f"{place} the shipped file gives {answer} on {where(question)}."
    others = {
        cpu: found
        for cpu, found in report.get("emulated", {}).items()
        if f"{cpu}, emulated" != question.get("device")
    }
    if not others:
        return said
    same = "the same bits" if all(map(_exact, others.values())) else "the gates passed as well"
    return f"{said} On {' and '.join(others)}, emulated: {same}."


def _exact(question: Mapping[str, Any]) -> bool:
    return all(metrics.get("bit_exact") for metrics in question["outputs"].values())


def on_cpus(report: Mapping[str, Any]) -> list[OnCpu]:
    """What the target's CPUs answered, emulated."""
    rows = []
    for cpu, question in report.get("emulated", {}).items():
        metrics = worst(question["outputs"])
        answer = "same bits" if _exact(question) else snr_text(metrics) if metrics else ""
        rows.append(OnCpu(cpu, answer, where(question), question["passed"]))
    return rows


def measured_on(report: Mapping[str, Any]) -> str:
    """The machine that device, memory and isolation are those of."""
    if not report.get("stands_in"):
        return "Measured on"
    return f"Measured on the build host, which is no {report['target']['name']}"


def metric_text(question: Mapping[str, Any]) -> str:
    """The task's metric: "top1 88.4 % → 88.2 %, 0.20 points lost on 500 samples"; or empty."""
    metric = question["metric"]
    if not metric:
        return ""
    drop = metric["drop_points"]
    change = f"{points(abs(drop))} {'lost' if drop >= 0 else 'gained'}" if drop else "no change"
    samples = metric.get("samples", question["samples"])
    model, original = _values(metric)
    return f"{metric['name']} {original} → {model}, {change} on {plural(samples, 'sample')}"


def speed(report: Mapping[str, Any]) -> str:
    """How fast the model is beside the original, in words; empty where it was not measured."""
    latency = report["latency"]
    if not latency:
        return ""
    names, reasons = _names(report), disturbed(report)
    if reasons:
        ratio = latency["ratio"]
        change = f"{ratio:.1f}× faster" if ratio >= 1 else f"{1 / ratio:.1f}× slower"
        return f"about {change} than {names[1]}, disturbed: {'; '.join(reasons)}"
    if report["slower"]:
        factor = 1 / latency["ratio"]
        return f"{names[0]} is {factor:.2f}× slower than {names[1]} on this machine"
    if latency["ratio"] < 1.02:
        return f"{names[0]} is as fast as {names[1]} on this machine"
    return f"{latency['ratio']:.2f}× faster than {names[1]}"


def _names(report: Mapping[str, Any]) -> tuple[str, str]:
    precision = report["target"].get("precision")
    return (precision, "fp32") if precision else ("the optimized model", "the original")


def method(report: Mapping[str, Any]) -> str:
    """How the latency was measured: "quick run, 2 threads, 128 queries each"."""
    latency = report["latency"] or {}
    parts = []
    if "length" in latency:
        parts.append(f"{latency['length']} run")
    if "threads" in latency:
        threads = latency["threads"]
        parts.append(plural(threads, "thread") if threads else "every physical core")
    if "queries" in latency.get("model", {}):
        parts.append(f"{latency['model']['queries']:,} queries each")
    if rounds := latency.get("rounds"):
        parts.append(plural(len(rounds), "interleaved round"))
    return ", ".join(parts)


def spread(latency: Mapping[str, Any]) -> tuple[float, float] | None:
    """The least and the largest speed-up over the rounds; None below two rounds."""
    ratios = [each["original"] / each["model"] for each in latency.get("rounds", ())]
    return (min(ratios), max(ratios)) if len(ratios) > 1 else None


def next_commands(report: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What to do next: command, and what it does."""
    # The name is shown, not run; quoted, so that what is copied is one word in a shell.
    bundle = shlex.quote(printable(report["bundle"]["path"]))
    if report["verdict"] == "fail":
        return (
            (f"python3 {bundle} verify", "judge it again"),
            (f"edgepack inspect {bundle}", "what it holds"),
        )
    target = shlex.quote(printable(report["target"]["name"]))
    source = shlex.quote(printable(report["source"]["path"]))
    if report["verdict"] == "unproven":
        return (
            (
                f"edgepack build {source} --target {target} --calibration PATH",
                "with real samples",
            ),
        )
    return (
        (f"python3 {bundle} verify", "on the device"),
        (f"python3 {bundle} bench", "its latency there"),
        (f"edgepack inspect {bundle}", "what it holds"),
    )
