"""Cost in instructions on the target's emulated CPUs, for targets that this host cannot time.

A count shows which kernels run. It is no time: how long an instruction takes, and what waits for
memory, differs between CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgepack import bundle, files
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import parse_model
from edgepack.device import countable, ready
from edgepack.device.instructions import Counts, count_models
from edgepack.graph.macs import macs
from edgepack.runtime.bundle.engines import ONNXRUNTIME, Variant
from edgepack.stages.auction.candidate import Candidate

# Share by which the totals of one model differ between counts: Python and the memory allocator.
NOISE = 0.01
# Emulated multiply-accumulates per second in float, seconds to start an emulator, and inferences of
# a count. Measured with qemu 7.2; int8 is faster.
RATE, START, CALLS = 30e6, 5.0, 3
# Most seconds for all counts of a build.
MOST = 90.0


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
            for cpu in self._cpus:
                self.counts[cpu] = []
                for i, candidate in enumerate(candidates):
                    counts = None
                    if candidate.engine == ONNXRUNTIME:
                        path = folder / f"{i}.onnx"
                        path.write_bytes(candidate.graph.model)
                        (counts,) = count_models(carrier, cpu, [path])
                    self.counts[cpu].append(counts)
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


def select_cpus(context: BuildContext, graph: Graph) -> tuple[tuple[str, ...], str]:
    """Return the CPUs of the target to count on, and the reason if there is none.

    Args:
        context: the build.
        graph: the float graph, whose size decides how long a count takes.
    """
    cpus = context.request.target.emulate
    if not context.request.emulate:
        return (), "--no-emulate"
    if not cpus:
        return (), "the profile names no CPU to emulate"
    for cpu in cpus:
        fault = ready(cpu) or countable(cpu)
        if fault is not None:
            return (), f"{fault.what}: {fault.hint}"
    products = macs(parse_model(graph.model), context.reference.feeds[0]) or 0
    # Two graphs on each CPU.
    seconds = 2 * (START + CALLS * products / RATE)
    fitting = int(MOST / seconds)
    if not fitting:
        return (), f"one CPU would take {seconds:.0f} s: edgepack bench --instructions {cpus[0]}"
    return tuple(cpus[:fitting]), ""


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
                "which is no time"
            )
    return sentences
