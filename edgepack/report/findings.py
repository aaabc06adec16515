"""Sentences of the report: the verdict, the loss and its stage, the size, the speed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

from edgepack.ledger import RecordDocument
from edgepack.metrics.closeness import closeness_db
from edgepack.metrics.results import list_metrics
from edgepack.report.cautions import list_disturbances, name_size_basis
from edgepack.report.documents import LatencySection, Report, VariantSection
from edgepack.report.figures import (
    format_apart,
    format_bytes,
    format_decibel,
    format_number,
    format_percent,
    format_plural,
    format_points,
    format_snr,
    is_share,
    printable,
)
from edgepack.report.gates import GateRow, format_gate
from edgepack.runtime.commands.info import describe_preprocessing
from edgepack.runtime.documents import Gate, MetricResult, OutputMetrics, Outputs, Question
from edgepack.runtime.parity.verdict import FAIL, MISSED, PASS, RANDOM, UNVERIFIED

# Two fp32 graphs whose SNR is above this differ by rounding alone.
ROUNDING_DB = 90.0
# Metric -> its value in a sentence; any other is "rmse 2.604".
_ACCURACIES = {"top1": "{} top-1", "top5": "{} top-5"}
LOSS_DB = 3.0
QUESTIONS: Mapping[Literal["quality", "preprocessing", "fidelity"], str] = {
    "quality": "How far is the optimized model from the original?",
    "preprocessing": "Are raw samples converted as on the build host?",
    "fidelity": "Does this device compute what the build host computed?",
}
UNVERIFIED_ON_REAL = (
    "Nothing was verified on real inputs: the model was calibrated on or judged by random data. "
    "Its gates and figures do not predict its behaviour on real data. Do not ship it."
)


class FormDetails(TypedDict, total=False):
    """Details of the stage `quantize` that the report reads."""

    mode: str
    layers_quantized: int
    layers_dynamic: list[str]
    layers_weights: list[str]
    layers_float: list[str]


@dataclass(frozen=True)
class EmulatedCpu:
    """Answers of an emulated CPU, as text.

    Attributes:
        cpu: name of the CPU.
        answer: agreement with the build host's answers.
        samples: number and kind of the samples.
        passed: true if its gates passed.
    """

    cpu: str
    answer: str
    samples: str
    passed: bool


@dataclass(frozen=True)
class Loss:
    """Stage at which the SNR of an output fell.

    Attributes:
        stage: name of the ledger's stage.
        position: of its record in the ledger.
        output: name of the model's output.
        before: SNR before the stage in dB; None if exact, or at the rounding of fp32.
        after: SNR after the stage in dB.
        text: SNR after the stage, in words.
    """

    stage: str
    position: int
    output: str
    before: float | None
    after: float
    text: str

    def __str__(self) -> str:
        before = "the rounding error of fp32"
        if self.before is not None:
            before = format_decibel(self.before)
        return f"{self.stage}: SNR of {self.output} fell from {before} to {self.text}"


def find_first_loss(records: Iterable[RecordDocument], drop_db: float = LOSS_DB) -> Loss | None:
    """Return the first stage that lowers some output's SNR by more than `drop_db`, or None.

    SNRs of 120, 118, 20 and 12 dB after export, simplify, quantize and repair give "quantize":
    the first two are both fp32 rounding.

    Args:
        records: the report's ledger.
        drop_db: in dB; SNRs above 90 dB count as equal.
    """
    previous: dict[str, float] = {}
    for position, record in enumerate(records):
        # Several outputs may fall in one stage; the one that ends lowest is named.
        losses = []
        for output, metrics in (record["parity"] or {}).items():
            snr = min(closeness_db(metrics), ROUNDING_DB)
            last = previous.get(output, ROUNDING_DB)
            if last - snr > drop_db:
                before = None
                if last < ROUNDING_DB:
                    before = last
                text = format_snr(metrics)
                losses.append(Loss(record["stage"], position, output, before, snr, text))
            previous[output] = snr
        if losses:
            return min(losses, key=lambda loss: loss.after)
    return None


def find_worst(outputs: Outputs) -> OutputMetrics | None:
    """Return the metrics of the output furthest from its reference; None without outputs.

    Non-finite values are worse than any SNR; a null SNR without them is exact.
    """
    return min(outputs.values(), key=closeness_db, default=None)


def format_worst(outputs: Outputs, missing: str = "") -> str:
    """Return the SNR of the worst output as text; `missing` without outputs."""
    metrics = find_worst(outputs)
    if metrics is None:
        return missing
    return format_snr(metrics)


def list_gates(report: Report) -> list[GateRow]:
    """Return the gates of every question: quality, preprocessing, then fidelity."""
    gates: list[Gate] = []
    for _, question in list_questions(report):
        gates += question["gates"]
    return list(map(format_gate, gates))


def list_questions(report: Report) -> list[tuple[str, Question]]:
    """Return the report's questions by name; a bundle of arrays has none on preprocessing."""
    answers = ((name, report.get(name)) for name in QUESTIONS)
    return [(name, answer) for name, answer in answers if answer is not None]


def describe_preparation(report: Report) -> str:
    """Return the preprocessing that the bundle carries, in words; "" without one."""
    for record in report["ledger"]:
        document = record["details"].get("preprocessing")
        if record["stage"] == "samples" and isinstance(document, dict):
            return describe_preprocessing(document)
    return ""


def describe_samples(question: Question) -> str:
    """Return the number and kind of a question's samples: "500 evaluation samples"."""
    return format_plural(question["samples"], f"{question['on']} sample")


def describe_verdict(report: Report) -> str:
    """Return the verdict in sentences: the gates, and the samples that they were judged on."""
    if is_random(report):
        return UNVERIFIED_ON_REAL
    rows = list_gates(report)
    decisive = [row for row in rows if row.decisive]
    missed = sum(not row.passed for row in decisive)
    gate = "gate"
    if len(decisive) < len(rows):
        gate = "decisive gate"
    if report["verdict"] == FAIL:
        return (
            f"{missed} of {format_plural(len(decisive), gate)} missed. {_describe_quality(report)} "
            "The bundle was not delivered; the rejected copy is for inspection only."
        )
    sentences = [f"Every {gate} passed ({len(decisive)})."]
    if report["verdict"] == UNVERIFIED:
        sentences = [f"Unverified: {'; '.join(list_doubts(report))}."]
    return " ".join([*sentences, _describe_quality(report), _describe_fidelity(report)])


def is_random(report: Report) -> bool:
    """Return True for an unverified bundle that was calibrated on or judged by random samples."""
    codes = [reason["code"] for reason in report["reasons"]]
    return report["verdict"] == UNVERIFIED and RANDOM in codes


def list_doubts(report: Report) -> list[str]:
    """Return what was not verified, in words; without the missed gates."""
    return [reason["text"] for reason in report["reasons"] if reason["code"] != MISSED]


def format_title(report: Report) -> str:
    """Return the verdict in a few words: "PASS, but slower than fp32: 0.57×"."""
    name = report["verdict"]
    if is_random(report):
        return f"{name}: random samples"
    texts = [caution["text"] for caution in report.get("cautions", ())]
    if name != PASS or not texts:
        return name
    return f"{name}, but {' and '.join(texts)}"


def describe_size(report: Report) -> str:
    """Return the share of the original's bytes, and for a checkpoint the bytes of its file."""
    sizes = report["sizes"]
    text = f"{format_percent(sizes['ratio'])} of {name_size_basis(report)}"
    if sizes.get("basis") == "export":
        text += f"; {report['source']['path']} has {format_bytes(sizes['file_bytes'])}"
    return text


def describe_forms(report: Report) -> str:
    """Return the number of layers in each quantized form; empty if all are static or float."""
    details = _find_forms(report)
    if details is None or details.get("mode") != "static":
        return ""
    # The details of the stage have the counts of static and float layers already.
    if not details["layers_dynamic"] and not details["layers_weights"]:
        return ""
    counts = (
        (details["layers_quantized"], "in static int8"),
        (len(details["layers_dynamic"]), "in dynamic int8"),
        (len(details["layers_weights"]), "with int8 weights and float arithmetic"),
        (len(details["layers_float"]), "in float"),
    )
    # "Layers: 12 in static int8, 2 in dynamic int8, 1 in float."
    forms = [f"{count} {form}" for count, form in counts if count]
    return f"Layers: {', '.join(forms)}."


def _find_forms(report: Report) -> FormDetails | None:
    """Return the details of the first quantization; None without one."""
    for record in report["ledger"]:
        if "layers_dynamic" in record["details"]:
            return cast("FormDetails", record["details"])
    return None


def _describe_quality(report: Report) -> str:
    question = report["quality"]
    metrics = find_worst(question["outputs"])
    if metrics is None:
        return ""
    clauses = []
    # Equal elements of an integer output are counted as agreement, but they are not classes.
    share = metrics.get("top1_agreement")
    if share is not None and metrics.get("compared") != "equality":
        clauses.append(f"chooses the original's class for {format_percent(share)}")
    # "reaches 88.4 % top-1 (original: 88.6 %), f1 87.9 % (original: 88.1 %)"
    reached = []
    for metric in list_metrics(question):
        model, original = _format_metric(metric)
        value = _ACCURACIES.get(metric["name"], metric["name"] + " {}").format(model)
        reached.append(f"{value} (original: {original})")
    if reached:
        clauses.append(f"reaches {', '.join(reached)}")
    clauses.append(_describe_distance(metrics))
    return f"On {describe_samples(question)} the optimized model {_join_clauses(clauses)}."


def _join_clauses(clauses: Sequence[str]) -> str:
    """Join clauses by commas and a final "and": ["a", "b", "c"] is "a, b and c"."""
    *first, last = clauses
    if not first:
        return last
    return f"{', '.join(first)} and {last}"


def _describe_distance(metrics: OutputMetrics) -> str:
    if metrics.get("nonfinite"):
        return "returns non-finite values"
    if metrics.get("compared") == "equality":
        share = metrics["top1_agreement"]
        if share in (None, 1.0):
            return "returns values that equal the original's"
        return f"returns values of which {format_percent(share)} equal the original's"
    if metrics["snr_db"] is None:
        return "returns the original's values exactly"
    if metrics["snr_db"] < 0:
        return f"has more error than signal (SNR {format_snr(metrics)})"
    return f"keeps its error {format_decibel(metrics['snr_db'])} below the signal"


def _format_metric(metric: MetricResult) -> tuple[str, str]:
    """Format the metric of the model and of the original; per cent if both are shares."""
    pair = metric["model"], metric["original"]
    if is_share(metric):
        return format_apart(format_percent, *pair, digits=1)
    return format_apart(_format_value, *pair, digits=4)


def _format_value(value: float, digits: int) -> str:
    """Format a metric; with more digits than usual, its zeros stay: 0.24520 beside 0.24518."""
    if digits <= 4:
        return format_number(value, digits)
    return f"{value:#.{digits}g}".rstrip(".")


def _describe_fidelity(report: Report) -> str:
    question = report["fidelity"]
    metrics = find_worst(question["outputs"])
    if metrics is None:
        return ""
    runner = "In its own loader"
    if "device" in question:
        runner = f"On {question['device']}"
    sentence = (
        f"{runner}, the bundle reproduces the build host's answers "
        f"{_describe_agreement(question, metrics)} on {describe_samples(question)}."
    )
    others: dict[str, Question] = {}
    for cpu, answer in report.get("emulated", {}).items():
        # The CPU that decided is the subject of the first sentence.
        if f"{cpu}, emulated" != question.get("device"):
            others[cpu] = answer
    if not others:
        return sentence
    result = "the gates passed as well"
    if all(map(_is_exact, others.values())):
        result = "the same bits"
    counts = sorted({answer["samples"] for answer in others.values()})
    samples = " and ".join(format_plural(count, "sample") for count in counts)
    return f"{sentence} On {' and '.join(others)}, emulated: {result} on {samples}."


def _describe_agreement(question: Question, metrics: OutputMetrics) -> str:
    if _is_exact(question):
        return "bit for bit"
    if closeness_db(metrics) == math.inf:
        # Such as 0.0 and -0.0: equal values, different bits.
        return "with equal values"
    return f"at an SNR of {format_snr(metrics)}"


def _is_exact(question: Question) -> bool:
    return all(metrics.get("bit_exact") for metrics in question["outputs"].values())


def list_variants(report: Report) -> list[tuple[str, str, bool]]:
    """Return name, result and pass of the variants besides the one that gave the answers."""
    return [
        (section["name"], describe_variant(section), section["passed"])
        for section in report.get("variants", ())
    ]


def describe_variant(section: VariantSection) -> str:
    """Return the result of one variant: its distances, the gates that it misses, and notes."""
    parts = list(section["misses"])
    if "fidelity" in section and "quality" in section:
        quality = format_worst(section["quality"]["outputs"], "no outputs")
        distance = format_worst(section["fidelity"]["outputs"], "no outputs")
        parts = [f"{quality} from the original", f"{distance} from onnxruntime", *parts]
    for cpu, question in section["emulated"].items():
        parts.append(f"{format_worst(question['outputs'], 'no outputs')} on {cpu}, emulated")
    result = "; ".join([*parts, *section["notes"]])
    return result if section["passed"] else f"left out: {result}"


def list_emulated(report: Report) -> list[EmulatedCpu]:
    """Return the answers of the target's CPUs, emulated."""
    answers = []
    for cpu, question in report.get("emulated", {}).items():
        samples, passed = describe_samples(question), question["passed"]
        answers.append(EmulatedCpu(cpu, _format_answer(question), samples, passed))
    return answers


def _format_answer(question: Question) -> str:
    if _is_exact(question):
        return "same bits"
    return format_worst(question["outputs"])


def describe_machine(report: Report) -> str:
    """Return the heading of the machine that device, memory and isolation describe."""
    if not report.get("stands_in"):
        return "Measured on"
    return f"Measured on the build host, not on {report['target']['name']}"


def describe_metric(question: Question) -> str:
    """Return the task's metrics: "top1 88.4 % → 88.2 %, 0.20 points lost on 500 samples".

    Of a metric that is not a share: "rmse 2.513 → 2.604, 0.091 worse on 500 samples". Several are
    separated by semicolons.
    """
    texts = []
    for metric in list_metrics(question):
        samples = metric.get("samples", question["samples"])
        model, original = _format_metric(metric)
        change, number = _format_drop(metric), format_plural(samples, "sample")
        texts.append(f"{metric['name']} {original} → {model}, {change} on {number}")
    return "; ".join(texts)


def _format_drop(metric: MetricResult) -> str:
    drop = metric["drop_points"]
    if not drop:
        return "no change"
    if not is_share(metric):
        return f"{format_number(abs(drop) / 100)} {'worse' if drop > 0 else 'better'}"
    if drop > 0:
        return f"{format_points(drop)} lost"
    # A negative drop: the model is better than the original.
    return f"{format_points(-drop)} gained"


def describe_speed(report: Report) -> str:
    """Return the speed beside the original's; empty if it was not measured."""
    latency = report["latency"]
    if not latency:
        return ""
    ratio = latency["ratio"]
    model, original = _name_sides(report)
    if reasons := list_disturbances(report):
        # A disturbed measurement gets one decimal less, and an "about".
        change = f"{ratio:.1f}× faster"
        if ratio < 1:
            change = f"{1 / ratio:.1f}× slower"
        return f"about {change} than {original}, disturbed: {'; '.join(reasons)}"
    if report["slower"]:
        return f"{model} is {1 / ratio:.2f}× slower than {original} on this machine"
    # "1.01× faster" would claim more than a measurement can show.
    if ratio < 1.02:
        return f"{model} is as fast as {original} on this machine"
    return f"{ratio:.2f}× faster than {original}"


def _name_sides(report: Report) -> tuple[str, str]:
    precision = report["target"].get("precision")
    if precision:
        return precision, "fp32"
    return "the optimized model", "the original"


def describe_method(report: Report) -> str:
    """Return the method of the latency: "quick run, 2 threads, 128 queries each"."""
    parts: list[str] = []
    latency = report["latency"]
    if not latency:
        return ""
    if "length" in latency:
        parts.append(f"{latency['length']} run")
    if "threads" in latency:
        parts.append(_describe_threads(latency["threads"]))
    if "queries" in latency.get("model", {}):
        parts.append(f"{latency['model']['queries']:,} queries each")
    if rounds := latency.get("rounds"):
        parts.append(format_plural(len(rounds), "interleaved round"))
    return ", ".join(parts)


def _describe_threads(threads: int) -> str:
    # Engines take 0 as "choose".
    if not threads:
        return "every physical core"
    return format_plural(threads, "thread")


def find_spread(latency: LatencySection) -> tuple[float, float] | None:
    """Return the smallest and the largest speed-up of the rounds; None below two rounds."""
    # Rounds of 8.0 and 4.0 ms, and of 8.2 and 4.0 ms, give (2.0, 2.05).
    ratios = [each["original"] / each["model"] for each in latency.get("rounds", ())]
    if len(ratios) < 2:
        return None
    return min(ratios), max(ratios)


def list_next_commands(report: Report, repeat: str = "") -> Sequence[tuple[str, str]]:
    """Return the commands to run next, each with its purpose.

    Args:
        report: the report.
        repeat: the command that builds the bundle on real samples, with the user's own options.
    """
    # The name is shown, not run; quoted, so that a copied command is one word in a shell.
    bundle = shlex.quote(printable(report["bundle"]["path"]))
    if report["verdict"] == FAIL:
        return (
            (f"python3 {bundle} verify", "verify it again"),
            (f"edgepack inspect {bundle}", "show its contents"),
        )
    target = shlex.quote(printable(report["target"]["name"]))
    source = shlex.quote(printable(report["source"]["path"]))
    if is_random(report):
        command = repeat or f"edgepack build {source} --target {target} --calibration PATH"
        return ((command, "use real samples"),)
    remedies = []
    for reason in report["reasons"]:
        if "remedy" in reason:
            remedies.append((printable(reason["remedy"]), "verify it on its target"))
    if remedies:
        return (*remedies, (f"edgepack inspect {bundle}", "show its contents"))
    return (
        (f"python3 {bundle} verify", "on the device"),
        (f"python3 {bundle} bench", "measure its latency"),
        (f"edgepack inspect {bundle}", "show its contents"),
    )
