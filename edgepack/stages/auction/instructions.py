"""Cost in instructions on the target's emulated CPUs, for targets that this host cannot time.

A count shows which kernels run. It is not a time: how long an instruction takes, and what waits for
memory, differs between CPUs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgepack import bundle, files, passes
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import parse_model
from edgepack.device import CPUS, countable, ready
from edgepack.device.instructions import Counts, count_models
from edgepack.graph.macs import macs
from edgepack.runtime.bundle.engines import ONNXRUNTIME, Variant
from edgepack.stages.auction.candidate import FP32, Candidate
from edgepack.stages.auction.forms import find_own_variant

# Share by which the totals of one model differ between counts: Python and the memory allocator.
NOISE = 0.01
# Emulated multiply-accumulates per second in float, seconds to start an emulator, and inferences of
# a count. Measured with qemu 7.2; int8 is faster.
RATE, START, CALLS = 30e6, 5.0, 3
# Most seconds for the counts of a build.
MOST = 90.0
# Features of ARM CPUs that decide which kernels run.
KERNELS = frozenset({"asimddp", "i8mm", "sve"})


class InstructionCost:
    """Cost in instructions of one inference on one thread, on emulated CPUs.

    Args:
        feed: input of the inference.
        cpus: names of the CPUs.

    Attributes:
        counts: CPU -> counts of the candidates in the order of the last measurement; None for one
            in another engine than onnxruntime.
    """

    unit = "instructions"
    noise = NOISE

    def __init__(self, feed: Mapping[str, np.ndarray], cpus: Sequence[str]) -> None:
        self.counts: dict[str, list[Counts | None]] = {}
        self._feed, self._cpus = feed, cpus

    def measure(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the geometric mean of the CPUs' counts for every candidate.

        Infinity stands for a candidate in another engine than onnxruntime. Raises HostError if this
        host cannot count, and the loader's errors.
        """
        with files.temporary_folder() as folder:
            carrier = _write_carrier(folder, candidates[0].graph, self._feed)
            paths = []
            for i, candidate in enumerate(candidates):
                if candidate.engine == ONNXRUNTIME:
                    paths.append(folder / f"{i}.onnx")
                    paths[-1].write_bytes(candidate.graph.model)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                results = pool.map(lambda cpu: count_models(carrier, cpu, paths), self._cpus)
                for cpu, counted in zip(self._cpus, results, strict=True):
                    entries = iter(counted)
                    self.counts[cpu] = [
                        next(entries) if candidate.engine == ONNXRUNTIME else None
                        for candidate in candidates
                    ]
        return [self._mean(i) for i in range(len(candidates))]

    def _mean(self, position: int) -> float:
        logarithms = []
        for counts in self.counts.values():
            entry = counts[position]
            if entry is None:
                return math.inf
            logarithms.append(math.log(entry.total))
        return math.exp(sum(logarithms) / len(logarithms))


def _write_carrier(folder: Path, graph: Graph, feed: Mapping[str, np.ndarray]) -> Path:
    """Write a bundle whose only purpose is to bring the input of the inference."""
    path = folder / "carrier.edgepack"
    inputs = [np.expand_dims(feed[tensor.name], 0) for tensor in graph.inputs]
    outputs = [np.zeros((1, 1), np.float32) for _ in graph.outputs]
    contents = bundle.Contents(
        name="carrier",
        target="carrier",
        device={},
        inputs=graph.inputs,
        outputs=graph.outputs,
        model=graph.model,
        variants=[Variant(ONNXRUNTIME, ONNXRUNTIME)],
        reference=inputs,
        original=outputs,
        built=None,
        gates={"quality": {}, "fidelity": {}},
        metric="",
        parts={tensor.name: [] for tensor in graph.outputs},
        provenance={},
        tools={},
        requirements="",
    )
    bundle.write(path, contents)
    return path


def list_compared(graph: Graph, context: BuildContext) -> list[Candidate]:
    """Return fp32, which competes unless the chain was requested, and the result of the chain."""
    own = find_own_variant(context.request.target)
    competes = context.request.chain_is_default and graph.root is not graph
    base = graph.root if competes else context.original
    precision = passes.name_precision(context.request.chain)
    return [Candidate(FP32, base, own, competes), Candidate(precision, graph, own)]


def select_cpus(context: BuildContext) -> tuple[tuple[str, ...], str]:
    """Return the CPUs of the target to count on, and the reason if there is none.

    Of the CPUs that run the same kernels only the first is counted.
    """
    request = context.request
    if not request.emulate:
        return (), "--no-emulate"
    if passes.name_precision(request.chain) == FP32:
        return (), "the model is float: there is nothing to compare it with"
    cpus: dict[frozenset[str], str] = {}
    for cpu in request.target.emulate:
        fault = ready(cpu) or countable(cpu)
        if fault is not None:
            return (), f"{fault.what}: {fault.hint}"
        features = CPUS[cpu].cpuinfo.get("Features", "").split()
        cpus.setdefault(KERNELS.intersection(features), cpu)
    if not cpus:
        return (), "the profile names no CPU to emulate"
    products = macs(parse_model(context.original.model), context.reference.feeds[0]) or 0
    seconds = START + CALLS * products / RATE
    if seconds > MOST:
        return (), (
            f"counting instructions would take {seconds:.0f} s: "
            "edgepack bench --instructions counts those of a bundle"
        )
    return tuple(cpus.values()), ""


def describe_counts(cost: InstructionCost, candidates: Sequence[Candidate]) -> list[str]:
    """Return a sentence for each CPU on every candidate after the first, in instructions.

    `cortex-a72, emulated: int8 takes 0.84 times the instructions of fp32 (9.94 M, 11.88 M)`.
    """
    sentences = []
    for cpu, counts in cost.counts.items():
        base = counts[0]
        for candidate, entry in zip(candidates[1:], counts[1:], strict=True):
            if base is None or entry is None:
                continue
            ratio = entry.total / base.total
            sentences.append(
                f"{cpu}, emulated: {candidate.form} takes {ratio:.2f} times the instructions of "
                f"{candidates[0].form} ({entry.total / 1e6:.2f} M, {base.total / 1e6:.2f} M), "
                "which is not a time"
            )
    return sentences
