"""Verdict of a bundle on the whole evaluation set, through the shipped loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgepack import device, files
from edgepack.context import EVALUATION_BATCH
from edgepack.context.answers import encode_evaluation
from edgepack.context.gates import judge_metrics, judge_primary
from edgepack.context.scoring import collect_frames, score_model
from edgepack.device import Local
from edgepack.ledger import Progress
from edgepack.metrics.collect import Collector
from edgepack.metrics.results import add_metrics, list_metrics
from edgepack.proof.job import Job
from edgepack.runtime.documents import Verdict


def evaluate(
    job: Job, path: Path, host: Local, progress: Progress, options: Sequence[str] = ()
) -> Verdict:
    """Return the verdict on the whole evaluation set, with the task metrics if there are any.

    The loader counts one accuracy itself. For all other metrics it writes its answers to a file,
    and they are computed here. Raises MetricError.

    Args:
        job: the job.
        path: the bundle.
        host: the device that runs it.
        progress: receives the number of evaluated samples.
        options: of the loader, such as the variant.
    """
    reference, counted = job.context.reference, job.context.counted
    frames = encode_evaluation(job.context.samples, reference, job.graph.inputs)
    stdin = _count_frames(frames, progress.advance)
    arguments = ["--evaluation", *options]
    with files.temporary_folder() as folder, Collector() as outputs:
        answers = folder / "answers.bin"
        if reference.scores:
            arguments += ["--answers", str(answers)]
        verdict = device.verify_bundle(host, host.put(path), *arguments, stdin=stdin)
        quality = verdict["quality"]
        if reference.scores:
            collect_frames(outputs, answers)
            results = score_model(reference, outputs, quality["outputs"], steady=True)
            add_metrics(quality, results, counted=bool(counted))
    # The loader judged every other gate.
    if not counted:
        quality["gates"] += judge_primary(job.context.bounds, quality["metric"])
    quality["gates"] += judge_metrics(job.request.metric_gates, list_metrics(quality))
    quality["passed"] = all(gate["passed"] for gate in quality["gates"])
    verdict["passed"] = quality["passed"] and reproduces(verdict)
    return verdict


def reproduces(verdict: Verdict) -> bool:
    """Return True if a device has the build host's inputs and answers."""
    preprocessing = verdict.get("preprocessing")
    if preprocessing is not None and not preprocessing["passed"]:
        return False
    return device.require_fidelity(verdict)["passed"]


def _count_frames(frames: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for frame in frames:
        yield frame
        advance(EVALUATION_BATCH)
