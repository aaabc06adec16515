"""`python3 BUNDLE`: files in and out, and exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack import bundle
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.info import format_bytes, info
from edgepack.runtime.commands.run import read_npz, write_npz
from edgepack.runtime.device import machine
from edgepack.runtime.errors import InputError
from support.bundle_cases import run_bundle
from support.linear import linear_contents, linear_onnx, reshaping


def bare(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A device on which nothing is installed yet."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(path), *arguments], capture_output=True, text=True
    )


def test_a_bare_device_is_told_what_to_install(linear_bundle: Path) -> None:
    done = bare(linear_bundle, "info", "--requirements")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == linear_contents().requirements
    done = bare(linear_bundle, "info")
    assert done.returncode == 0
    assert "  numpy        missing\n  onnxruntime  missing\n" in done.stdout


def test_info_shows_sections_of_aligned_rows(linear_bundle: Path) -> None:
    with Archive(str(linear_bundle)) as archive:
        index, digest = read_index(archive), archive.sha256()
    lines, _ = info(str(linear_bundle))
    assert lines[: lines.index("this device")] == [
        "linear for cpu-fbgemm",
        "",
        "bundle",
        f"  content      {index.content_digest}",
        f"  sha256       {digest}",
        f"  model        {index.files[index.model][1]} B",
        "",
        "inputs and outputs",
        "  input        x: float32 (batch, 8)",
        "  output       y: float32 (batch, 3), scores",
        "",
        "requirements",
        "  arch         x86_64",
        "  isa          avx2",
        "  python       3.8 or newer",
        "",
        "gates",
        "  samples      5 reference samples",
        "  quality      top-1 agreement at least 90 %",
        "               SNR at least 60 dB",
        "  fidelity     SNR at least 40 dB",
        "",
        "variants, best first",
        "  onnxruntime  needs onnxruntime 1.19 or newer",
        "               runs here",
        "",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_996, "1.00 MB"), (18_550_000, "18.55 MB")],
)
def test_bytes_have_a_unit(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_info_where_nothing_would_run(tmp_path: Path) -> None:
    path = tmp_path / "sparc.edgepack"
    contents = linear_contents()
    bundle.write(path, replace(contents, device={**contents.device, "arch": "sparc"}))
    done = run_bundle(path, "info", "--json")
    assert done.returncode == 0
    variant = json.loads(done.stdout)["variant"]
    assert (variant["name"], variant["error"]["code"]) == (None, "device-arch")
    done = run_bundle(path, "info")
    assert "no variant runs here: this bundle is not for this kind of processor" in done.stdout


def test_info_where_the_system_does_not_tell_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safest variant is taken, and it is said."""
    path = tmp_path / "two.edgepack"
    faster = Variant("vnni", "onnxruntime", {"isa": ["avx2", "avx512_vnni"]})
    contents = linear_contents()
    bundle.write(path, replace(contents, variants=[faster, *contents.variants]))
    monkeypatch.setattr(machine, "CPUINFO", str(tmp_path / "absent"))
    lines, document = info(str(path))
    assert document["variant"]["name"] == "onnxruntime"
    assert not document["variant"]["fallback"]
    text = "\n".join(lines)
    assert "skipped: this system does not report the processor's instruction sets" in text
    assert lines[-1].startswith("  isa          unknown on this system")


@pytest.mark.parametrize(
    "command", [["verify"], ["run", "--output", "out.npz"], ["bench"], ["device"], ["finish"]]
)
def test_a_bare_device_cannot_compute(command: list[str], linear_bundle: Path) -> None:
    done = bare(linear_bundle, *command, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "numpy-missing"
    assert "Traceback" not in done.stderr


def test_samples_on_which_the_engine_fails(tmp_path: Path) -> None:
    """It could not run: exit 2, not the 1 of a missed gate."""
    path, source = tmp_path / "reshape.edgepack", tmp_path / "in.npz"
    bundle.write(path, replace(linear_contents(), model=reshaping()))
    np.savez(source, x=np.ones((1, 2, 8), np.float32))
    output = tmp_path / "out.npz"
    done = run_bundle(path, "run", "--input", str(source), "--output", str(output), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "engine-failed"
    assert not output.exists()


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "encoder/out:0", "é"])
def test_outputs_of_any_name_are_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    arrays = {name: np.arange(6.0).reshape(2, 3), "scalar": np.array(3)}
    write_npz(str(path), arrays)
    found = read_npz(str(path))
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)


def test_nothing_is_left_beside_the_output(tmp_path: Path) -> None:
    write_npz(str(tmp_path / "out.npz"), {"y": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(str(path), {"y": np.array([object()])})
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]
    with pytest.raises(InputError) as caught:
        write_npz(str(tmp_path / "absent" / "out.npz"), {"y": np.zeros(3)})
    assert caught.value.code == "output-unwritable"


def damaged(path: Path) -> None:
    np.savez(path, x=np.zeros((50, 8), np.float32))
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    np.savez(path, x=np.zeros((5, 8), np.float32))
    path.write_bytes(path.read_bytes()[:-30])


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((5, 8), np.float32))


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object))


def with_header(text: str) -> Callable[[Path], None]:
    """An .npz whose one array has that header, and no values."""

    def make(path: Path) -> None:
        header = text.encode()
        with zipfile.ZipFile(path, "w") as archive:
            start = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little")
            archive.writestr("x.npy", start + header)

    return make


def shaped(shape: str) -> Callable[[Path], None]:
    return with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n")


def flagged(place: int, value: int) -> Callable[[Path], None]:
    """An .npz that says of its array, in both headers, what it is not."""

    def make(path: Path) -> None:
        np.savez(path, x=np.zeros((5, 8), np.float32))
        data = bytearray(path.read_bytes())
        data[place] = data[data.index(b"PK\1\2") + place + 2] = value
        path.write_bytes(data)

    return make


def corrupt_lzma(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", bytes(range(256)) * 9)
    data = bytearray(path.read_bytes())
    data[70] ^= 255
    path.write_bytes(data)


def twice(path: Path) -> None:
    np.savez(path, x=np.zeros((5, 8), np.float32))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))


@pytest.mark.parametrize(
    "make",
    [
        damaged,
        truncated,
        single,
        pickled,
        twice,
        corrupt_lzma,
        shaped("(1000000000000, 8)"),
        shaped("(True, 8)"),
        with_header("[" * 9000),
        with_header("-" * 9000 + "1"),
        flagged(6, 1),  # encrypted
        flagged(8, 99),  # a method that there is not
        flagged(4, 99),  # a version that there is not
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\3\4 no archive"),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
)
def test_samples_that_cannot_be_read(make, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    make(path)
    with pytest.raises(InputError) as caught:
        read_npz(str(path))
    assert caught.value.code == "samples-unreadable"


def test_samples_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_npz(str(tmp_path / "in.npz"))
    assert caught.value.why == "No such file or directory"
    assert caught.value.hint.startswith("check the path")
    with pytest.raises(InputError) as caught:
        read_npz(str(tmp_path))
    assert caught.value.why == "it is a folder"
    assert caught.value.hint.startswith("check the path")


def test_what_is_no_array_is_none(linear_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "not an array")
    assert read_npz(str(path)) == {}
    done = run_bundle(linear_bundle, "run", "--input", str(path), "--output", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "error[input-names]" in done.stderr


def in_shell(bundle: Path, command: str) -> subprocess.CompletedProcess[str]:
    line = f'"$0" "$1" {command}'
    return subprocess.run(
        ["sh", "-c", line, sys.executable, str(bundle)], capture_output=True, text=True
    )


@pytest.mark.parametrize("command", ["no-such-command", "run --output /no/where"])
def test_where_nobody_hears_it_nothing_is_taken_for_a_missed_gate(
    command: str, linear_bundle: Path
) -> None:
    done = in_shell(linear_bundle, f"{command} 2>/dev/full")
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_document_replaces_the_text(linear_bundle: Path) -> None:
    done = in_shell(linear_bundle, "verify --json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["passed"]
    closed = in_shell(linear_bundle, "verify --json 2>&-")
    assert (closed.returncode, json.loads(closed.stdout)["passed"]) == (0, True)


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("verify", "verdict: PASS"),
        ("info", "linear for cpu-fbgemm"),
        ("device", "numpy       " + np.__version__),
    ],
)
def test_text_goes_to_stdout_and_nothing_to_stderr(
    command: str, result: str, linear_bundle: Path
) -> None:
    done = in_shell(linear_bundle, command)
    assert (done.returncode, done.stderr) == (0, "")
    assert result in done.stdout


def test_a_pipe_filters_the_text(linear_bundle: Path) -> None:
    done = in_shell(linear_bundle, "info | grep ' output '")
    assert done.stdout == "  output       y: float32 (batch, 3), scores\n"


@pytest.mark.parametrize("to", [">/dev/full", ">&-"])
@pytest.mark.parametrize("command", ["verify", "info", "verify --json", "info --requirements"])
def test_a_result_that_cannot_be_written_is_an_error(
    to: str, command: str, linear_bundle: Path
) -> None:
    done = in_shell(linear_bundle, f"{command} {to}")
    assert done.returncode == 2
    assert "error[output-unwritable]: the result cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [((), 2), (("--help",), 0), (("verify", "--no-such-option"), 2), (("no-such-command",), 2)],
)
def test_usage(arguments: tuple[str, ...], status: int, linear_bundle: Path) -> None:
    done = run_bundle(linear_bundle, *arguments)
    assert done.returncode == status
    assert "python3 BUNDLE" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [("--threads", "99999999999"), ("--threads", "-1"), ("--samples", "0")]
)
def test_numbers_that_mean_nothing(arguments: tuple[str, ...], linear_bundle: Path) -> None:
    done = run_bundle(linear_bundle, "verify", *arguments)
    assert done.returncode == 2
    assert "is not a whole number from" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_proved_on_no_evaluation_samples(linear_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(linear_bundle), "verify", "--evaluation"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error[evaluation-cut]" in done.stderr


@pytest.mark.parametrize(
    ("name", "code", "hint"),
    [
        ("text.onnx", "engine-refused", "--against takes an ONNX file"),
        ("other.onnx", "against-failed", "a model with the same inputs"),
    ],
)
def test_bench_refuses_a_file_that_is_not_a_model_of_these_inputs(
    name: str, code: str, hint: str, linear_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text("no model")
    if name == "other.onnx":
        model, _ = linear_onnx()
        model.graph.input[0].name = model.graph.node[0].input[0] = "z"
        path.write_bytes(model.SerializeToString())
    turn = ("bench-turn", "--queries", "1", "--seconds", "0", "--against", str(path))
    error = json.loads(run_bundle(linear_bundle, *turn).stdout)["error"]
    assert error["code"] == code
    assert str(path) in error["what"]
    assert hint in error["hint"]
