"""Names of ARM processors, for which Linux reports only numbers.

The numbers are the fields `Implementer` and `PartNum` of the register MIDR_EL1; the names are from
the vendors' manuals, as in `arch/arm64/include/asm/cputype.h` of Linux and in lscpu.
"""

from __future__ import annotations

from typing import Mapping

ARM = {
    0xD01: "Cortex-A32",
    0xD02: "Cortex-A34",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD06: "Cortex-A65",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD0E: "Cortex-A76AE",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD43: "Cortex-A65AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4A: "Neoverse-E1",
    0xD4B: "Cortex-A78C",
    0xD4C: "Cortex-X1C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD83: "Neoverse-V3AE",
    0xD84: "Neoverse-V3",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
    0xD8E: "Neoverse-N3",
}
# Cores by other implementers than ARM.
OTHERS = {
    0x42: {0x100: "Broadcom Brahma-B53"},
    0x43: {0x0A1: "Cavium ThunderX-88XX", 0x0AF: "Cavium ThunderX2-99xx"},
    0x46: {0x001: "Fujitsu A64FX"},
    0x48: {0xD01: "HiSilicon Kunpeng-920", 0xD40: "HiSilicon Cortex-A76"},
    0x4E: {0x000: "NVIDIA Denver", 0x003: "NVIDIA Denver 2", 0x004: "NVIDIA Carmel"},
    0x51: {
        0x800: "Qualcomm Kryo 2xx Gold",
        0x801: "Qualcomm Kryo 2xx Silver",
        0x802: "Qualcomm Kryo 3xx Gold",
        0x803: "Qualcomm Kryo 3xx Silver",
        0x804: "Qualcomm Kryo 4xx Gold",
        0x805: "Qualcomm Kryo 4xx Silver",
    },
    0x61: {
        0x022: "Apple Icestorm (M1)",
        0x023: "Apple Firestorm (M1)",
        0x032: "Apple Blizzard (M2)",
        0x033: "Apple Avalanche (M2)",
    },
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1a"},
}
_PARTS = {0x41: ARM, **OTHERS}


def arm_name(cpuinfo: Mapping[str, str]) -> str:
    """Return the name of an ARM processor, its part number if unknown, or "" on other processors.

    Implementer 0x41 and part 0xd0b, for example, are "Cortex-A76".

    Args:
        cpuinfo: the fields of /proc/cpuinfo for one processor, keys in lower case.
    """
    part = cpuinfo.get("cpu part", "")
    try:
        parts = _PARTS[int(cpuinfo["cpu implementer"], 16)]
        return parts[int(part, 16)]
    except (KeyError, ValueError):
        return part
