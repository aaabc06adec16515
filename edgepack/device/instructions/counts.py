"""How many instructions one inference takes on an emulated CPU, by class.

The engine runs on one thread, and a plugin of qemu's counts between marks that the loader sets.
The compute classes come out the same in every run. The rest is Python's and the memory
allocator's too and moves by a fraction of a percent, so the smallest total of several inferences
is told. How long an instruction takes is not known here, so this is not time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepack import files
from edgepack.device.cpus import find
from edgepack.device.device import ask
from edgepack.device.emulated import Emulated
from edgepack.device.instructions.plugin import plugin
from edgepack.errors import DeviceError, HostError

REPEATS = 5
UNIT = "instructions, emulated; not time"
# Dot products and matrix products of int8, other SIMD products of integers, floating-point
# multiply-adds: what a kernel is made of. Their instructions are told one by one.
COMPUTE = ("dot", "matrix", "intmul", "fma")

# Class and kind of instruction, to how often it ran.
Region = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Counts:
    """Instructions of one inference.

    Attributes:
        total: the smallest of several.
        spread: by how much the largest exceeds it, as a share of it.
        classes: of that inference, class to instructions; they add up to the total.
        compute: of that inference, instruction to how often it ran, in the compute classes.
        exact: whether these were the same in all.
    """

    total: int
    spread: float
    classes: Mapping[str, int]
    compute: Mapping[str, int]
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `dot_products` tells whether instructions made for int8 ran."""
        made_for_int8 = self.classes["dot"] + self.classes["matrix"]
        return {**asdict(self), "dot_products": made_for_int8 > 0}


@dataclass(frozen=True)
class Counted:
    """A bundle on an emulated CPU, and beside it another model.

    Attributes:
        cpu: a key of CPUS.
        model: the bundle's.
        original: the other ONNX model's, where one was given.
    """

    cpu: str
    model: Counts
    original: Counts | None

    @property
    def ratio(self) -> float | None:
        """Instructions of the other model over the bundle's."""
        return self.original.total / self.model.total if self.original else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
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
    """Count a bundle's instructions, and those of another ONNX model that takes the same inputs.

    Raises SpecError where there is no such CPU, HostError where this host cannot count, and what
    the loader refuses with.
    """
    counter = plugin(cpu)
    model = _count(bundle, cpu, counter)
    original = _count(bundle, cpu, counter, f"--against={against.resolve()}") if against else None
    return Counted(cpu, model, original)


def _count(bundle: Path, cpu: str, counter: Path, *arguments: str) -> Counts:
    # `cache clean --emulator` leaves it while it is in use.
    in_use = files.in_use(counter.parent)
    with files.temporary_folder() as folder, closing(in_use):
        out = folder / "regions"
        named = f"file={_escaped(counter)},out={_escaped(out)}"
        # The seed of Python's hashes changes what a look-up costs.
        options = ("-plugin", named, "-E", "PYTHONHASHSEED=0")
        with Emulated(cpu, options) as device:
            place = device.put(bundle)
            try:
                marked, _ = ask(
                    device, place, "marked", f"--repeats={REPEATS}", "--threads=1", *arguments
                )
            except DeviceError as error:
                # The plugin opens its file before the first instruction.
                if out.exists():
                    raise
                raise HostError(
                    "plugin-refused",
                    "qemu did not take the plugin that counts instructions",
                    why=error.why,
                    hint=f"delete {counter.parent}, and it is compiled anew",
                ) from error
        regions = [_region(line) for line in out.read_text(encoding="ascii").splitlines()]
    empty, expected = marked["empty"], marked["empty"] + marked["inferences"]
    if len(regions) != expected:
        raise HostError(
            "count-incomplete",
            f"the instructions on {cpu} were not counted",
            why=f"{expected} regions were marked and {len(regions)} counted",
            hint="this is a fault of edgepack's own, or of this qemu; report it with its version",
        )
    return summary(regions[empty - 1], regions[empty:])


def _escaped(path: Path) -> str:
    """A path as a value among qemu's options, where a comma would end it."""
    return str(path).replace(",", ",,")


def _region(line: str) -> Region:
    found = {}
    for name, instructions in json.loads(line).items():
        group, kind = name.split()
        found[group, kind] = instructions
    return found


def summary(empty: Region, inferences: Sequence[Region]) -> Counts:
    """The smallest of several inferences, each less what an empty region holds."""
    net = [{key: one[key] - empty[key] for key in one} for one in inferences]
    totals = [sum(one.values()) for one in net]
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
        exact=all(_compute(one) == compute for one in net),
    )


def _compute(region: Region) -> dict[str, int]:
    return {kind: found for (group, kind), found in region.items() if group in COMPUTE and found}
