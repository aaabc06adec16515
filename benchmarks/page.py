"""Write docs/benchmarks.md from the results that the benchmarks left in results/.

python benchmarks/page.py            # `make bench` does so after measuring
python benchmarks/page.py --check    # exit status 1 if the page is not current
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import record

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
Row = Mapping[str, Any]

INTRODUCTION = """\
# Benchmarks

<!-- Written by `make bench` from benchmarks/results; edit benchmarks/page.py instead. -->

Each table names the machine, the date and the versions that it was measured with. `make bench`
measures all of them again on your machine, writes the figures as JSON to `benchmarks/results`, and
this page from them. Latency is that of single samples, measured in turns with what it is compared
with, so that a disturbance meets all of them.
"""

EFFICIENTNET = """\
## EfficientNet-Lite0 on x86-64

fp32 to int8, on 1,040 crops of labelled ImageNet pictures that were not used for calibration. The
last column compares each file's answers on an emulated Haswell, a CPU without VNNI, with its
answers on the machine itself. Speed is the median of the ratios to fp32 by turn. The report
pictured in the README is from another run, and its latencies differ. `benchmarks/efficientnet.py`
measures this table.
"""

NETWORKS = """\
## Networks that differ in kind

What edgepack and other tools make of one float32 ONNX and the same calibration samples, judged on
64 other samples against float32. Ratios are medians, by turn, of the p50 of single samples over
that of onnxruntime in float32: below 1 is faster. A load average well above the number of threads
tells that other programs ran beside, and that only the order of magnitude counts.
`benchmarks/networks/write.py` writes the networks, and `benchmarks/peers.py` measures the tables; a
network or a peer without a row has not been measured yet.
"""

CHAIN = """\
## Passes on Fashion-MNIST

A ResNet of 2.8 million parameters, judged on the 10,000 test pictures, none of which any training
read. Each row is a whole build; sizes are those of the model, and loader, reference samples and
report add some 370 kB to every bundle. All bundles were measured in turns, on one thread.
In the rows with "1,000 labels", the other 59,000 training pictures have none. 2:4 sparsity costs
nothing and gains nothing here: only kernels made for it use it. `benchmarks/chain.py` measures it.
"""

DYNAMIC = """\
## Dynamic int8 for transformers

A BERT-like model of four layers, trained on sentences about films, with 853 sentences held out, one
at a time on one thread. Speed is the median, by turn, of the ratios of CPU time to PyTorch's
`quantize_dynamic`; the rows that multiply integers are within its noise of each other.
`benchmarks/dynamic.py` measures it.
"""


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share: 0.9875 as 98.8 %."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def decibel(value: float | None) -> str:
    """Format an SNR; "" without one."""
    return "" if value is None else f"{value:.1f} dB"


def megabytes(value: int | None) -> str:
    """Format a size: 4971055 as 4.97 MB."""
    return "" if value is None else f"{value / 1e6:.2f} MB"


def without_vnni(row: Row) -> str:
    """Say how a file answers on an emulated Haswell."""
    emulated = row.get("haswell")
    if emulated is None:
        return ""
    if emulated["bit_exact"]:
        return "the same bits"
    return decibel(emulated["snr_db"])


Column = tuple[str, Callable[[Row], str]]

EFFICIENTNET_COLUMNS: Sequence[Column] = (
    ("p50", lambda row: f"{row['p50_ms']:.1f} ms"),
    ("against fp32", lambda row: f"{row['speed_up_over_fp32']:.2f}x"),
    ("agrees with fp32", lambda row: percent(row.get("agreement"))),
    ("SNR", lambda row: decibel(row.get("snr_db"))),
    ("size", lambda row: megabytes(row.get("bytes"))),
    ("on a CPU without VNNI", without_vnni),
)


def time_ratio(threads: int) -> Callable[[Row], str]:
    """Return what formats the ratio to float32 with its spread; "" for a row without times."""

    def show(row: Row) -> str:
        timing = row.get(f"threads_{threads}")
        if timing is None:
            return ""
        low, high = timing["spread"]
        return f"{timing['against_fp32']:.2f} ({low:.2f}-{high:.2f})"

    return show


NETWORK_COLUMNS: Sequence[Column] = (
    ("1 thread", time_ratio(1)),
    ("2 threads", time_ratio(2)),
    ("SNR", lambda row: decibel(row.get("snr_db"))),
    ("agrees", lambda row: percent(row.get("agreement"))),
    ("size", lambda row: megabytes(row.get("bytes"))),
    ("error", lambda row: str(row.get("error", "")).replace("|", "/")),
)
DYNAMIC_COLUMNS: Sequence[Column] = (
    ("size", lambda row: megabytes(row["bytes"])),
    ("p50", lambda row: f"{row['p50_ms']:.2f} ms"),
    ("against `quantize_dynamic`", lambda row: f"{row['speed_up_over_quantize_dynamic']:.1f}x"),
    ("agrees with fp32", lambda row: percent(row["agreement"])),
    ("top-1", lambda row: percent(row["top1"])),
)


def chain_columns(teacher: Row) -> Sequence[Column]:
    """Return the columns of the passes, each beside the row of the teacher."""
    return (
        ("model", lambda row: f"{row['model_bytes'] / 1000:,.0f} kB"),
        ("smaller", lambda row: f"{teacher['model_bytes'] / row['model_bytes']:.1f}x"),
        ("parameters", lambda row: f"{row['parameters']:,}"),
        ("MACs", lambda row: f"{row['macs'] / 1e6:.1f} M"),
        ("p50", lambda row: f"{row['p50_ms']:.3f} ms"),
        ("faster", lambda row: f"{row['faster']:.1f}x"),
        ("top-1", lambda row: percent(row["top1"], 2)),
    )


def table(rows: Mapping[str, Row], columns: Sequence[Column]) -> str:
    """Return a table with a line for each row and a column for each figure."""
    lines = [["", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    for name, row in rows.items():
        lines.append([name, *(figure(row) for _, figure in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measured_on(results: Mapping[str, Any]) -> str:
    """Say when, on what and with which versions a benchmark ran."""
    device = results["device"]
    vnni = "with" if results["vnni"] else "without"
    packages = [f"{name} {version}" for name, version in results["versions"].items()]
    return (
        f"{results['date']}: {device['cores']} cores of an {device['cpu']} {vnni} VNNI, "
        f"Python {device['python']}, {', '.join(packages)}.\n"
    )


def network_sections(peers: Mapping[str, Any]) -> Iterable[str]:
    """Yield a table for each network, and the networks on which edgepack loses."""
    if not peers:
        return
    yield NETWORKS
    for name, rows in peers["networks"].items():
        yield f"**{name}** ({peers['kinds'][name]}; load average {peers['load'][name]:.1f})\n"
        yield table(rows, NETWORK_COLUMNS)
    if peers["losses"]:
        yield "edgepack loses here:\n"
        yield "".join(f"- {line}\n" for line in peers["losses"])
    yield measured_on(peers)


def sections() -> Iterable[str]:
    """Yield the page, part by part."""
    yield INTRODUCTION
    first, chain, dynamic = (record.read(name) for name in ("efficientnet", "chain", "dynamic"))
    yield from (EFFICIENTNET, table(first["rows"], EFFICIENTNET_COLUMNS), measured_on(first))
    yield from network_sections(record.read("peers"))
    columns = chain_columns(chain["rows"]["teacher"])
    yield from (CHAIN, table(chain["rows"], columns), measured_on(chain))
    yield from (DYNAMIC, table(dynamic["rows"], DYNAMIC_COLUMNS), measured_on(dynamic))


def main() -> None:
    """Write the page, or check it."""
    text = "\n".join(sections())
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/benchmarks.md is not what benchmarks/page.py writes from the results")
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
