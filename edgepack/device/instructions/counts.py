"""Instructions of one inference on an emulated CPU, counted by class.

The engine runs on one thread, and a plugin of qemu counts between marks that the loader sets. The
compute classes are the same in every run. The others include Python and the memory allocator and
vary by a fraction of a percent, so the smallest total of several inferences is reported. The
duration of an instruction is unknown, so the count is not a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepack import files
from edgepack.device.cpus import find
from edgepack.device.device import ask
from edgepack.device.emulated import Emulated
from edgepack.device.instructions.plugin import plugin
from edgepack.errors import DeviceError, HostError

REPEATS = 5
FEW_REPEATS = 2
UNIT = "instructions, emulated; not time"
# Classes that kernels consist of: int8 dot products and matrix products, other SIMD products of
# integers, floating-point multiply-adds. Their instructions are reported individually.
COMPUTE = ("dot", "matrix", "intmul", "fma")

# (class, kind) -> executions of the instruction, such as ("dot", "sdot") -> 18432.
Region = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Counts:
    """Instructions of one inference.

    Attributes:
        total: smallest total of several inferences.
        spread: excess of the largest total, as a fraction of the smallest.
        classes: instructions of that inference by class; they add up to the total.
        compute: executions in that inference by instruction, for the compute classes.
        exact: the figures of `compute` were the same in all inferences.
    """

    total: int
    spread: float
    classes: Mapping[str, int]
    compute: Mapping[str, int]
    exact: bool

    def to_json(self) -> dict[str, object]:
        """Return JSON values; `dot_products` is true if dedicated int8 instructions ran."""
        dedicated = self.classes["dot"] + self.classes["matrix"]
        return {**asdict(self), "dot_products": dedicated > 0}


@dataclass(frozen=True)
class Counted:
    """Counts of a bundle on an emulated CPU, and of a second model to compare with.

    Attributes:
        cpu: a key of CPUS.
        model: counts of the bundle.
        original: counts of the second ONNX model; None without one.
    """

    cpu: str
    model: Counts
    original: Counts | None

    @property
    def ratio(self) -> float | None:
        """Return the second model's instructions over the bundle's."""
        if self.original is None:
            return None
        return self.original.total / self.model.total

    def to_json(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "cpu": self.cpu,
            "arch": find(self.cpu).arch,
            "emulated": True,
            "unit": UNIT,
            "threads": 1,
            "repeats": REPEATS,
            "model": self.model.to_json(),
            "original": self.original.to_json() if self.original else None,
            "ratio": self.ratio,
        }


def count(bundle: Path, cpu: str, against: Path | None = None) -> Counted:
    """Count a bundle's instructions, and those of another ONNX model with the same inputs.

    Raises SpecError for an unknown CPU, HostError if this host cannot count, and the loader's own
    errors.
    """
    counter = plugin(cpu)
    (model,) = _count(bundle, cpu, counter)
    original = None
    if against:
        (original,) = _count(bundle, cpu, counter, f"--against={against.resolve()}")
    return Counted(cpu, model, original)


def count_models(bundle: Path, cpu: str, models: Sequence[Path]) -> list[Counts]:
    """Count the instructions of ONNX models in few inferences, to compare them with each other.

    A large network takes seconds for each inference, and the compute classes are the same in all.

    Args:
        bundle: its first reference sample is the models' input.
        cpu: a key of CPUS.
        models: in onnxruntime.

    Raises as `count` does.
    """
    arguments = [f"--against={model.resolve()}" for model in models]
    return _count(bundle, cpu, plugin(cpu), *arguments, "--warm-up=1", repeats=FEW_REPEATS)


def _count(
    bundle: Path, cpu: str, counter: Path, *arguments: str, repeats: int = REPEATS
) -> list[Counts]:
    """Count every model that the arguments name, or the bundle's own."""
    # `cache clean --emulator` skips the plugin while it is in use.
    in_use = files.mark_in_use(counter.parent)
    with files.temporary_folder() as folder, closing(in_use):
        out = folder / "regions"
        specifier = f"file={_escape(counter)},out={_escape(out)}"
        # A fixed hash seed, since the cost of a dictionary look-up depends on it.
        options = ("-plugin", specifier, "-E", "PYTHONHASHSEED=0")
        with Emulated(cpu, options) as device:
            path = device.put(bundle)
            try:
                marks, _ = ask(
                    device, path, "marked", f"--repeats={repeats}", "--threads=1", *arguments
                )
            except DeviceError as error:
                # The plugin opens its file before the first instruction.
                if out.exists():
                    raise
                raise HostError(
                    "plugin-refused",
                    "qemu did not load the plugin that counts instructions",
                    why=error.why,
                    hint=f"delete {counter.parent} to compile the plugin again",
                ) from error
        regions = [_parse_region(line) for line in out.read_text(encoding="ascii").splitlines()]
    # The loader marks the empty regions of a model first; the last of them holds the cost of a mark
    # itself. With 2 empty regions and 5 inferences a model has 7.
    empty, size = marks["empty"], marks["empty"] + marks["inferences"]
    expected = size * max(1, sum(name.startswith("--against=") for name in arguments))
    if len(regions) != expected:
        raise HostError(
            "count-incomplete",
            f"the instructions on {cpu} were not counted",
            why=f"{expected} regions were marked and {len(regions)} counted",
            hint="this is a bug of edgepack or of this qemu; report it with qemu's version",
        )
    counts = []
    for start in range(0, expected, size):
        counts.append(summary(regions[start + empty - 1], regions[start + empty : start + size]))
    return counts


def _escape(path: Path) -> str:
    """Escape a path for qemu's options, in which a comma ends a value."""
    return str(path).replace(",", ",,")


def _parse_region(line: str) -> Region:
    # {"dot sdot": 18432, "memory other": 52011} gives {("dot", "sdot"): 18432, ...}.
    region = {}
    for name, instructions in json.loads(line).items():
        group, kind = name.split()
        region[group, kind] = instructions
    return region


def summary(empty: Region, inferences: Sequence[Region]) -> Counts:
    """Return the counts of the smallest of several inferences, less those of an empty region."""
    net = [{key: region[key] - empty[key] for key in region} for region in inferences]
    totals = [sum(region.values()) for region in net]
    smallest = net[totals.index(min(totals))]
    classes: dict[str, int] = {}
    for (group, _), instructions in smallest.items():
        classes[group] = classes.get(group, 0) + instructions
    compute = _compute(smallest)
    return Counts(
        total=min(totals),
        spread=max(totals) / min(totals) - 1,
        classes=classes,
        compute=compute,
        exact=all(_compute(region) == compute for region in net),
    )


def _compute(region: Region) -> dict[str, int]:
    return {kind: n for (group, kind), n in region.items() if group in COMPUTE and n}
