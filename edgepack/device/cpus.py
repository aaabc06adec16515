"""Processors that qemu can emulate.

qemu's user mode shows its guest the host's /proc/cpuinfo. The loader would read instruction sets
from it that the emulated processor lacks, and the engine on ARM crashes without the lines that it
expects. A file below qemu's prefix replaces the host's, so every processor here writes its own
/proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import SpecError
from edgepack.spec.suggestions import nearest


@dataclass(frozen=True)
class Cpu:
    """Emulated processor.

    Attributes:
        name: name on the command line.
        arch: "x86_64" or "aarch64".
        model: qemu's name of it.
        cpuinfo: lines of /proc/cpuinfo for each core, key to value.
    """

    name: str
    arch: str
    model: str
    cpuinfo: Mapping[str, str]

    def write(self, prefix: Path, cores: int) -> None:
        """Write Linux's description of a machine with this number of cores, below a prefix."""
        # proc/cpuinfo has a block for each core, separated by empty lines:
        #   processor       : 0
        #   CPU part        : 0xd03
        (prefix / "proc").mkdir()
        shared = "".join(f"{key}\t: {value}\n" for key, value in self.cpuinfo.items())
        blocks = [f"processor\t: {core}\n{shared}" for core in range(cores)]
        (prefix / "proc" / "cpuinfo").write_text("\n".join(blocks) + "\n", encoding="ascii")
        lists = prefix / "sys" / "devices" / "system" / "cpu"
        lists.mkdir(parents=True)
        for name in ("possible", "present", "online"):
            (lists / name).write_text(f"0-{cores - 1}\n" if cores > 1 else "0\n", encoding="ascii")
        for core in range(cores):
            _write_topology(lists / f"cpu{core}" / "topology", core, cores)


def _format_mask(mask: int) -> str:
    """Format a set of cores as Linux does: core 1 is "2", core 32 is "00000001,00000000"."""
    words: list[str] = []
    while mask or not words:
        words.append(f"{mask & 0xFFFFFFFF:08x}")
        mask >>= 32
    return ",".join(reversed(words))


def _write_topology(folder: Path, core: int, cores: int) -> None:
    """Write the place of a core in its package, without which OpenVINO crashes."""
    own, all_cores = _format_mask(1 << core), _format_mask((1 << cores) - 1)
    folder.mkdir(parents=True)
    values = {
        "core_id": str(core),
        "physical_package_id": "0",
        "core_cpus": own,
        "thread_siblings": own,
        "package_cpus": all_cores,
        "core_siblings": all_cores,
    }
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")


# Instruction sets of the real parts, less those that qemu's TCG does not implement.
_X86_64_V3 = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
    "syscall nx rdtscp lm pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx "
    "f16c rdrand lahf_lm abm fsgsbase bmi1 avx2 smep bmi2 erms"
)
_ARMV8 = "fp asimd evtstrm crc32 cpuid"
_ARMV8_CRYPTO = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp ssbs"
)


def _intel(name: str, model: int, title: str, flags: str) -> Cpu:
    identity = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": str(model)}
    return Cpu(name, "x86_64", name, {**identity, "model name": title, "flags": flags})


def _arm(name: str, variant: str, part: str, revision: str, features: str, model: str = "") -> Cpu:
    return Cpu(
        name,
        "aarch64",
        model or name,
        {
            "BogoMIPS": "100.00",
            "Features": features,
            "CPU implementer": "0x41",
            "CPU architecture": "8",
            "CPU variant": variant,
            "CPU part": part,
            "CPU revision": revision,
        },
    )


CPUS: Mapping[str, Cpu] = {
    cpu.name: cpu
    for cpu in (
        _intel("Haswell", 60, "Intel Core Processor (Haswell)", _X86_64_V3),
        _intel(
            "Skylake-Client",
            94,
            "Intel Core Processor (Skylake)",
            _X86_64_V3 + " adx rdseed smap clflushopt xgetbv1 3dnowprefetch",
        ),
        _arm("cortex-a53", "0x0", "0xd03", "4", _ARMV8),
        _arm("cortex-a72", "0x0", "0xd08", "3", _ARMV8_CRYPTO),
        _arm("cortex-a76", "0x4", "0xd0b", "1", _ARMV8_2),
        _arm("neoverse-n1", "0x4", "0xd0c", "1", _ARMV8_2),
        # Products of int8 matrices, as on Neoverse V1. qemu's plain `max` would also enable SME,
        # whose int8 answers are wrong in qemu 7.2.
        _arm(
            "neoverse-i8mm",
            "0x0",
            "0xd40",
            "1",
            _ARMV8_2 + " i8mm bf16",
            model="max,sve=off,sme=off",
        ),
    )
}


def find(name: str) -> Cpu:
    """Return a processor by name. Raises SpecError for an unknown name."""
    if name not in CPUS:
        why, near = "it is not in the list", nearest(name, CPUS)
        if near:
            why += f"; did you mean {near!r}?"
        raise SpecError(
            "cpu-unknown",
            f"there is no emulated CPU named {name!r}",
            why=why,
            hint="one of " + ", ".join(CPUS),
        )
    return CPUS[name]
