"""Counts of instructions: what an instruction is, that the counter misses none and invents none,
and that the kernels of a product of matrices run as often as arithmetic says.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.device import CPUS, countable
from edgepack.device.instructions.counts import COMPUTE
from edgepack.device.instructions.plugin import SOURCES, plugin
from edgepack.report import render_instructions
from edgepack.report.instructions import CLASSES
from edgepack.runtime.commands.marked import BEGIN, END
from support import instruction_kinds as kinds
from support.build_cases import render_text
from support.emulation import KEPT, X86_64, edgepack, prepare

# Says of every line of bytes, in hexadecimal, which kind of instruction they are.
TELL = """
#include <stdio.h>
#include "classes.h"
int main(void)
{
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        uint8_t bytes[16];
        size_t size = 0;
        unsigned byte;
        for (char *at = line; sscanf(at, "%2x", &byte) == 1; at += 2)
            bytes[size++] = byte;
        puts(KIND_NAMES[OF_LINE]);
    }
}
"""
WORD = "kind_of_aarch64(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (uint32_t)bytes[3] << 24)"
# A second thread multiplies all the while that the first is in its region.
THREADS = """
#include <pthread.h>
#include <unistd.h>
static volatile int busy, done;
static void *other(void *nothing)
{
    while (!done) {
        __asm__ volatile("vpmaddwd %ymm0, %ymm1, %ymm2");
        busy = 1;
    }
    return nothing;
}
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, other, 0);
    while (!busy)
        ;
    close(END);
    close(BEGIN);
    for (int i = 0; i < 100000; i++)
        __asm__ volatile("vpmaddubsw %ymm0, %ymm1, %ymm2\\n vfmadd231ps %ymm0, %ymm1, %ymm2");
    close(END);
    done = 1;
    return pthread_join(thread, 0);
}
"""
# One product of a (M, K) and a (K, N) matrix.
M, K, N = 48, 64, 128
PRODUCTS = M * K * N


def compile_c(folder: Path, text: str, *options: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    (folder / "program.c").write_text(text)
    program = folder / "program"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", *options, "-o", program]
    subprocess.run([*command, folder / "program.c"], check=True)
    return program


def counting(cpu: str) -> None:
    """Skip, with the reason, where this machine cannot count."""
    fault = countable(cpu)
    if fault:
        pytest.skip(f"{fault.what}: {fault.hint}")


def regions(cpu: str, program: Path, folder: Path, monkeypatch: Any) -> list[dict[str, int]]:
    """What the plugin counts of a program, without what is zero."""
    counting(cpu)
    monkeypatch.setenv("EDGEPACK_CACHE", str(KEPT))
    found = CPUS[cpu]
    out = folder / "regions"
    subprocess.run(
        [
            *(f"qemu-{found.arch}", "-plugin", f"file={plugin(cpu)},out={out}"),
            *("-cpu", found.model, program),
        ],
        check=True,
        timeout=60,
    )
    read = [json.loads(line) for line in out.read_text().splitlines()]
    return [{kind: ran for kind, ran in region.items() if ran} for region in read]


@pytest.mark.parametrize(
    ("told", "of_line"),
    [
        ([(w.to_bytes(4, "little").hex(), kind) for w, kind in kinds.AARCH64], WORD),
        (kinds.X86_64, "kind_of_x86_64(bytes, size)"),
    ],
    ids=["aarch64", "x86-64"],
)
def test_kinds(told: Sequence[tuple[str, str]], of_line: str, tmp_path: Path) -> None:
    # The plugin takes one of the two functions at run time; here the other stands unused.
    options = [f"-I{SOURCES[0].parent}", f"-DOF_LINE={of_line}", "-Wno-unused"]
    program = compile_c(tmp_path, TELL, *options)
    lines = "".join(f"{code}\n" for code, _ in told)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    wrong = [
        (*pair, found)
        for pair, found in zip(told, done.stdout.splitlines(), strict=True)
        if pair[1] != found
    ]
    assert wrong == []


def test_every_class_has_a_title_and_a_test() -> None:
    """Classes stand in the plugin, in the report and in the table of the tests."""
    listed = SOURCES[1].read_text().split("#define AS_ENUM")[0]
    pairs = re.findall(r"K\((\w+), (\w+)\)", listed)
    assert {group for group, _ in pairs} == set(CLASSES) >= set(COMPUTE)
    tested = {kind for _, kind in (*kinds.AARCH64, *kinds.X86_64)}
    assert {f"{group} {kind}" for group, kind in pairs} == tested


def elf(words: Sequence[int]) -> bytes:
    """A static AArch64 program of those instructions and nothing else."""
    base, size = 0x400000, 120 + 4 * len(words)
    magic = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", magic, 2, 183, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + struct.pack(f"<{len(words)}I", *words)


def call(number: int, argument: int) -> list[int]:
    """mov x8, #number; mov w0, #argument (of two halves); svc #0"""
    low, high = argument & 0xFFFF, argument >> 16 & 0xFFFF
    return [0xD2800008 | number << 5, 0x52800000 | low << 5, 0x72A00000 | high << 5, 0xD4000001]


def test_nothing_is_missed_and_nothing_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop over every SIMD product of the table, on a CPU that has them all."""
    rounds = 1234
    compute = [(word, kind) for word, kind in kinds.AARCH64 if kind.split()[0] in COMPUTE]
    body = [word for word, _ in compute] + [0x3DC003E0, 0x4E22D420]  # ldr q0, [sp]; fadd
    loop = [
        0xD2800001 | rounds << 5,
        *body,
        0xF1000421,
        0x54000001 | (-len(body) - 1 & 0x7FFFF) << 5,
    ]
    close, leave = 57, 93
    words = [*call(close, BEGIN), *call(close, END), *call(close, BEGIN), *loop, *call(close, END)]
    program = tmp_path / "program"
    program.write_bytes(elf([*words, *call(leave, 0)]))
    program.chmod(0o755)
    empty, full = regions("neoverse-i8mm", program, tmp_path, monkeypatch)
    assert empty == {"integer other": 4}
    expected = Counter({kind: rounds * ran for kind, ran in Counter(k for _, k in compute).items()})
    expected += {"memory other": rounds, "simd other": rounds, "branch other": rounds}
    expected += {"integer other": rounds + 1 + 4}
    assert full == expected


@X86_64
def test_other_threads_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [f"-DBEGIN={BEGIN}", f"-DEND={END}"]
    program = compile_c(tmp_path, THREADS, *marks, "-mavx2", "-pthread")
    # An end without a beginning is none.
    (region,) = regions("Haswell", program, tmp_path, monkeypatch)
    products = {kind: ran for kind, ran in region.items() if kind.split()[0] in COMPUTE}
    assert products == {"intmul pmaddubsw": 100_000, "fma vfmadd": 100_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, one product of matrices, and its bundles for both architectures."""
    place = tmp_path_factory.mktemp("product")
    rng = np.random.default_rng(5)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", M, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", M, N])],
        [numpy_helper.from_array(rng.normal(size=(K, N)).astype(np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), place / "net.onnx")
    for role in ("calibration", "evaluation"):
        np.savez(place / f"{role}.npz", x=rng.normal(size=(100, M, K)).astype(np.float32))
    for target in ("arm-qnnpack", "cpu-fbgemm"):
        done = edgepack(
            *("build", str(place / "net.onnx"), "--target", target, "--quiet"),
            *("--calibration", str(place / "calibration.npz")),
            *("--evaluation", str(place / "evaluation.npz"), "--latency", "none"),
            *("--output", str(place / f"{target}.edgepack"), "--no-emulate", "--allow-unverified"),
            cache=place / "cache",
        )
        assert done.returncode == 0, done.stderr
    return place


def bench(folder: Path, target: str, *cpus: str, against: bool) -> tuple[list[dict[str, Any]], str]:
    """What the command counts on each CPU, and what the terminal showed."""
    flags = [f"--emulate={cpu}" for cpu in cpus]
    if against:
        flags.append(f"--against={folder / 'net.onnx'}")
    done = edgepack("bench", str(folder / f"{target}.edgepack"), "--instructions", *flags, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    found = document["devices"]
    text = render_text(render_instructions, document)
    assert [counted["cpu"] for counted in found] == list(cpus)
    for counted in found:
        assert counted["emulated"] is True
        assert counted["unit"] == "instructions, emulated; not time"
        for counts in filter(None, (counted["model"], counted["original"])):
            assert counts["exact"]
            assert sum(counts["classes"].values()) == counts["total"]
            assert set(counts["classes"]) == set(CLASSES)
            products = sum(counts["classes"][group] for group in COMPUTE)
            assert sum(counts["compute"].values()) == products
    assert " ms" not in text
    return found, text


def test_products_of_int8_on_three_generations_of_arm(folder: Path) -> None:
    """An instruction makes 8, 16 or 32 products, and so many fewer run."""
    prepare("cortex-a53")
    counting("cortex-a53")
    cpus = ("cortex-a53", "neoverse-n1", "neoverse-i8mm")
    (a53, n1, i8mm), shown = bench(folder, "arm-qnnpack", *cpus, against=False)
    old = a53["model"]["compute"]
    assert old["smull"] + old["smlal"] == PRODUCTS // 8
    assert n1["model"]["compute"]["udot"] == n1["model"]["classes"]["dot"] == PRODUCTS // 16
    assert i8mm["model"]["compute"]["ummla"] == PRODUCTS // 32
    assert i8mm["model"]["classes"]["matrix"] == PRODUCTS // 32
    assert [found["model"]["dot_products"] for found in (a53, n1, i8mm)] == [False, True, True]
    assert re.findall(r"int8 instructions .* executed: (\w+)", shown) == ["no", "yes", "yes"]
    assert shown.count("instructions, emulated; not time") == 3
    assert a53["model"]["total"] > n1["model"]["total"] > i8mm["model"]["total"]
    assert {found["ratio"] for found in (a53, n1, i8mm)} == {None}


def test_twice_the_same_against_fp32(folder: Path) -> None:
    prepare("cortex-a53")
    counting("cortex-a53")
    runs = [bench(folder, "arm-qnnpack", "neoverse-n1", against=True) for _ in range(2)]
    (first,), (again,) = (found for found, _ in runs)
    for name in ("model", "original"):
        assert first[name]["compute"] == again[name]["compute"]
        # On a network of this size Python is nearly all of it; larger ones differ by less.
        assert first[name]["total"] == pytest.approx(again[name]["total"], rel=0.005)
    assert first["original"]["compute"] == {"fmla": PRODUCTS // 4}
    assert not first["original"]["dot_products"]
    assert first["ratio"] == first["original"]["total"] / first["model"]["total"] > 1
    assert f"{first['ratio']:.2f}x fewer instructions than the other model" in runs[0][1]


@X86_64
def test_x86(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a temporary folder whose name holds what separates qemu's options."""
    counting("Haswell")
    temporary = folder / "a,b=c"
    temporary.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    (found,), shown = bench(folder, "cpu-fbgemm", "Haswell", against=True)
    assert found["original"]["compute"] == {"vfmadd": PRODUCTS // 8}
    assert found["model"]["compute"]["pmaddubsw"] >= PRODUCTS // 32
    assert not found["model"]["dot_products"]
    assert "int8 instructions (VNNI) executed: no" in shown
    assert list(temporary.iterdir()) == []


def test_doctor_tells_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where nothing is installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = json.loads(edgepack("doctor", "--json", cache=tmp_path).stdout)
    found = next(finding for finding in findings if finding["name"] == "instructions")
    assert not found["present"]
    assert not found["required"]
    assert found["hint"] == "apt-get install qemu-user"
