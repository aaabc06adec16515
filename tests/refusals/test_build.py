"""Bad command lines and bad inputs, end to end: one error with its code, exit 2, nothing written.

Each is also what stands on stdout with `--json`, and nothing else does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.data import infer_inputs
from support.build_cases import (
    SIZE,
    Home,
    ask,
    edgepack,
    images,
    one_document,
    tiny_onnx,
    tiny_weights,
)


def refuse(arguments: list[str], folder: Path, code: str, *said: str, output: str = "") -> None:
    """The build ends with this code, and leaves the folder of its output as it was."""
    before = sorted(folder.rglob("*"))
    place = output or str(folder / "x.edgepack")
    answer = ask(*arguments, "--output", place, "-q")
    assert (answer.status, answer.code) == (2, code), answer.document
    error = answer.document["error"]
    assert error["what"]
    assert error["hint"]
    for text in said:
        assert text in json.dumps(error)
    assert answer.stderr.splitlines()[-1].strip()
    assert f"error[{code}]: {error['what'].splitlines()[0]}" in answer.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def with_samples(home: Home, out: Path, **arrays: np.ndarray) -> list[str]:
    np.savez(out.parent / "given.npz", **arrays)
    return home.build("tiny.onnx", "--calibration", str(out.parent / "given.npz"), calibration="")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'MODEL'"),
        (["m.onnx"], "Missing option '--target'"),
        (["m.onnx", "--target", "cpu-fbgemm", "--calibratoin", "x"], "--calibration"),
        (["m.onnx", "--target", "cpu-fbgemm", "--max-drop", "many"], "not a valid float"),
        (["m.onnx", "--target", "cpu-fbgemm", "--max-drop", "-1"], "range"),
        (["m.onnx", "--target", "cpu-fbgemm", "--latency", "long"], "smoke"),
        (["m.onnx", "--target", "cpu-fbgemm", "--arch-arg", "width"], "key=value"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = edgepack("build", *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = one_document(done.stdout)["error"]
    assert error["code"] == "usage"
    assert said in error["what"]
    assert done.stderr.startswith("error[usage]: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_metric(home: Home, out: Path) -> None:
    arguments = home.build("tiny.onnx", "--metric", "pearsn")
    refuse(arguments, out, "metric-unknown", "did you mean pearson?")
    (out.parent / "m.toml").write_text('schema = 1\n[evaluation]\nmetric = "top3"\n')
    arguments = home.build("tiny.onnx", "--manifest", str(out.parent / "m.toml"))
    refuse(arguments, out, "metric-unknown", "top1, top5")
    answer = ask("manifest", "check", str(out.parent / "m.toml"))
    assert (answer.status, answer.code) == (2, "metric-unknown")


def test_without_json_stdout_is_empty(home: Home, tmp_path: Path) -> None:
    done = edgepack("build", home / "absent.onnx", "--target", "cpu-fbgemm", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "\nerror[source-missing]: " in done.stderr
    assert "  why:  " in done.stderr
    assert "  hint: " in done.stderr


def test_an_unknown_target(home: Home, out: Path) -> None:
    arguments = [a if a != "cpu-fbgemm" else "cpu-fbgem" for a in home.build("tiny.onnx")]
    refuse(arguments, out, "target-unknown", "cpu-fbgemm")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("schema = 1\n[gate", "spec-not-toml"),
        ("schema = 1\ncalibraton = 3\n", "manifest-invalid"),
        ("schema = 2\n", "manifest-invalid"),
    ],
)
def test_a_wrong_manifest(home: Home, out: Path, text: str, code: str) -> None:
    (out.parent / "m.toml").write_text(text)
    refuse(home.build("tiny.onnx", "--manifest", str(out.parent / "m.toml")), out, code)


def test_a_missing_manifest(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", "--manifest", "absent.toml"), out, "spec-unreadable")


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ("quantise", "chain-unknown-pass"),
        ("quantize:calibrator", "chain-option"),
        ("quantize:calibrater=mse", "chain-option"),
        ("quantize:calibrator=best", "quantize-option"),
    ],
)
def test_a_wrong_chain(home: Home, out: Path, chain: str, code: str) -> None:
    refuse(home.build("tiny.onnx", "--chain", chain), out, code)


def test_calibration_given_and_refused(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", "--random-calibration"), out, "calibration-twice")


# The model.


def test_a_missing_model(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onx"), out, "source-missing", "tiny.onnx")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: b"", "source-empty"),
        (lambda data: data[: len(data) // 2], "source-truncated"),
        (lambda data: b"\x00" * len(data), "source-unknown"),
        (lambda data: data.replace(b"GlobalAveragePool", b"GlobalAveragePoor"),
         "source-onnx-invalid"),
        (lambda data: data.replace(b"Gemm", b"Conv"), "source-onnx-invalid"),
    ],
)  # fmt: skip
def test_a_corrupt_onnx(home: Home, out: Path, damage: Callable[[bytes], bytes], code: str) -> None:
    path = out.parent / "corrupt.onnx"
    path.write_bytes(damage(Path(home / "tiny.onnx").read_bytes()))
    refuse(home.build(str(path)), out, code)


def test_weights_that_are_not_finite(home: Home, out: Path) -> None:
    weights = {**tiny_weights(), "0.bias": np.full(8, np.nan, np.float32)}
    onnx.save(tiny_onnx(weights), out.parent / "nan.onnx")
    refuse(home.build(str(out.parent / "nan.onnx")), out, "source-weights-nonfinite", "0.bias")


def test_a_state_dict_without_its_network(torch_home: Home, out: Path) -> None:
    refuse(torch_home.build("tiny.pt"), out, "source-arch-required")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--arch", "tiny"], "source-arch-form"),
        (["--arch", "absent.py:tiny"], "source-arch-import"),
        (["--arch", "HOME/nets.py:tinny"], "source-arch-missing"),
        (["--arch", "HOME/nets.py:tiny", "--arch-arg", "clases=4"], "source-factory-arguments"),
        (["--arch", "HOME/nets.py:tiny", "--arch-arg", "classes=four"], "source-factory-failed"),
        (["--arch", "HOME/nets.py:tiny", "--arch-arg", "classes=5"], "source-weights-mismatch"),
        (["--arch", "HOME/nets.py:head"], "source-factory-arguments"),
    ],
)
def test_a_wrong_factory(torch_home: Home, out: Path, options: list[str], code: str) -> None:
    options = [text.replace("HOME", str(torch_home.folder)) for text in options]
    refuse(torch_home.build("tiny.pt", *options), out, code)


def test_a_factory_for_a_model_that_brings_its_network(home: Home, out: Path) -> None:
    arguments = home.build("tiny.onnx", "--arch", home / "nets.py:tiny")
    refuse(arguments, out, "source-arch-unneeded")


@pytest.mark.parametrize(
    ("name", "dims", "code", "said"),
    [
        ("Frozen", "batch,4", "axis-frozen", "batch"),
        ("Branch", "batch,4", "export-failed", "nets.py"),
    ],
)
def test_a_network_that_cannot_be_exported_as_asked(
    torch_home: Home, out: Path, name: str, dims: str, code: str, said: str
) -> None:
    """The number of samples written into it; a branch on what the values are."""
    import torch

    state = {"Frozen": {"out.weight": torch.ones(4, 4), "out.bias": torch.ones(4)},
             "Branch": {"scale": torch.ones(1)}}[name]  # fmt: skip
    torch.save(state, out.parent / "m.pt")
    samples = np.random.default_rng(0).normal(size=(4, 2, 4)).astype(np.float32)
    np.savez(out.parent / "two.npz", x=np.abs(samples))
    options = ["--arch", torch_home / f"nets.py:{name}", "--input", f"x:float32:{dims}",
               "--calibration", str(out.parent / "two.npz"), "--chain", "none"]  # fmt: skip
    refuse(torch_home.build(str(out.parent / "m.pt"), *options, calibration=""), out, code, said)


# Inputs and samples.


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("image", "input-spec"),
        ("image:floot32:batch,1,16,16", "input-spec"),
        ("image:float32:batch,1,16,\N{SUPERSCRIPT TWO}", "input-spec"),
        ("image:float32:batch,1,16,99999999999999999999", "input-spec"),
        ("picture:float32:batch,1,16,16", "inputs-differ"),
        ("image:float64:batch,1,16,16", "inputs-differ"),
        ("image:float32:batch,1,16,width", "inputs-differ"),
        ("image:float32:batch,256", "inputs-differ"),
    ],
)
def test_a_wrong_input(home: Home, out: Path, written: str, code: str) -> None:
    refuse(home.build("tiny.onnx", "--input", written), out, code)


def test_two_inputs_of_one_name(torch_home: Home, out: Path) -> None:
    twice = ["--input", "x:float32:batch,4"] * 2
    arguments = torch_home.build("tiny.pt", "--arch", torch_home / "nets.py:tiny", *twice)
    refuse(arguments, out, "inputs-twice")


def test_inputs_that_nothing_tells(torch_home: Home, out: Path) -> None:
    arguments = torch_home.build("tiny.pt", "--arch", torch_home / "nets.py:tiny",
                                 "--random-calibration", calibration="")  # fmt: skip
    refuse(arguments, out, "inputs-unknown", "--input", "image:float32")
    settings = Path(torch_home / "recordings.toml")
    settings.write_text("schema = 1\n[audio]\nrate = 8000\n")
    refuse([*arguments, "--manifest", str(settings)], out, "inputs-unknown", "waveform:float32")
    # Pictures do not name the input, but their conversion shows its shape.
    pictures = ["--pictures", "resize=40,crop=[24,32],normalize=0.5,colour=grey"]
    refuse([*arguments, *pictures], out, "inputs-unknown", ":float32:batch,1,24,32")


def test_no_samples(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", calibration=""), out, "samples-missing", "image:float32")


def test_samples_that_are_not_there(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", calibration="calibratoin.npz"), out, "samples-not-found",
           "calibration.npz")  # fmt: skip


def test_samples_that_are_not_samples(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", calibration="nets.py"), out, "samples-format")
    assert infer_inputs(home / "calibration.npz") is not None


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"picture": images(4, 0)}, "samples-missing-input"),
        ({"image": images(4, 0), "other": np.ones(4)}, "samples-extra-input"),
        ({"image": images(4, 0).astype(np.complex64)}, "samples-dtype"),
        ({"image": images(4, 0)[:, :, :8]}, "samples-shape"),
        ({"image": images(4, 0).transpose(0, 2, 3, 1)}, "samples-layout"),
        ({"image": images(0, 0)}, "samples-empty"),
        ({"image": np.where(images(4, 0) > 5, np.nan, images(4, 0))}, "samples-not-finite"),
        ({"image": images(4, 0), "labels": np.zeros(3, np.int64)}, "samples-labels-count"),
        ({"image": images(4, 0), "labels": np.zeros(4, "datetime64[D]")}, "samples-labels-type"),
        ({"image": np.array([1, "a", None, 2], object)}, "samples-object-array"),
        ({"image": images(4, 0), "labels": np.array([0, 1, 2, 4])}, "labels-range"),
        ({"image": images(4, 0), "labels": np.array([0, 1, 2, -1])}, "labels-range"),
        ({"image": images(4, 0), "labels": np.array([0, 1, 2, 0.5])}, "labels-range"),
        ({"image": images(4, 0), "labels": np.zeros((4, 3), np.int64)}, "labels-shape"),
    ],
)
def test_samples_that_do_not_fit(
    home: Home, out: Path, arrays: dict[str, np.ndarray], code: str
) -> None:
    refuse(with_samples(home, out, **arrays), out, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return 3", "samples-function-result"),
        ("raise RuntimeError('no data')", "samples-function-failed"),
        ("yield 3", "samples-function-result"),
        ("yield {'image': 'a'}", "samples-dtype"),
        ("raise SystemExit(0)", "code-exited"),
        (
            "import numpy, os\n    for _ in range(40): "
            "yield {'image': numpy.frombuffer(os.urandom(256), 'u1').reshape(1, 16, 16) / "
            "numpy.float32(9)}",
            "samples-function-changing",
        ),
    ],
)
def test_a_function_that_gives_no_samples(home: Home, out: Path, body: str, code: str) -> None:
    (out.parent / "s.py").write_text(f"def samples():\n    {body}\n")
    function = f"{out.parent / 's.py'}:samples"
    refuse(home.build("tiny.onnx", "--calibration", function, calibration=""), out, code)
    (out.parent / "s.py").write_text("def (\n")
    arguments = home.build("tiny.onnx", "--calibration", function, calibration="")
    refuse(arguments, out, "samples-function-import")


def test_a_folder_of_pictures_without_a_word_on_them(home: Home, out: Path) -> None:
    from PIL import Image

    pictures = out.parent / "pictures"
    pictures.mkdir()
    Image.new("L", (SIZE, SIZE)).save(pictures / "a.png")
    arguments = home.build("tiny.onnx", "--calibration", str(pictures), calibration="")
    refuse(arguments, out, "pictures-preprocessing-missing")


def test_a_metric_without_labels(home: Home, out: Path) -> None:
    for option in (["--max-drop", "1"], ["--metric", "top1"]):
        arguments = home.build("tiny.onnx", *option, "--evaluation", home / "unlabelled.npz")
        refuse(arguments, out, "metric-needs-labels", "labels")


def test_as_many_outputs_as_the_values_say(home: Home, out: Path) -> None:
    """After quantization another number of them: they make no array of the bundle."""
    model = tiny_onnx(tiny_weights())
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("many", 1e4), ("zero", 0))
    )
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["scores", "many"], ["large"]),
            helper.make_node("Sin", ["large"], ["waves"]),
            helper.make_node("Greater", ["waves", "zero"], ["some"]),
            helper.make_node("NonZero", ["some"], ["kept"]),
        ]
    )
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, [2, "count"])
    model.graph.output.append(kept)
    onnx.save(model, out.parent / "m.onnx")
    refuse(home.build(str(out.parent / "m.onnx")), out, "chain-outputs-ragged", "kept")


# Places.


def test_an_output_that_cannot_be_written(home: Home, out: Path) -> None:
    """Found before anything is computed: the model need not even be there."""
    (out / "file").write_text("a file, not a folder")
    (out / "folder.edgepack").mkdir()
    for place in ("absent/x.edgepack", "file/x.edgepack", "folder.edgepack", "x" * 300):
        refuse(home.build("absent.onnx"), out, "output-unwritable", output=str(out / place))


def test_an_output_that_is_no_plain_file(home: Home, out: Path) -> None:
    """A rename would take the place of a device: of /dev/null, where root builds."""
    os.mkfifo(out / "pipe")
    (out / "link").symlink_to(out / "pipe")
    for place in ("pipe", "link"):
        refuse(home.build("absent.onnx"), out, "output-unwritable", output=str(out / place))
    assert (out / "pipe").is_fifo()


def test_a_dry_run_looks_at_the_place(home: Home, out: Path) -> None:
    refuse(home.build("tiny.onnx", "--dry-run"), out, "output-is-input", output=home / "tiny.onnx")


def test_a_dry_run_looks_for_the_samples(home: Home, out: Path) -> None:
    arguments = home.build("tiny.onnx", "--dry-run", calibration="calibratoin.npz")
    refuse(arguments, out, "samples-not-found", "did you mean calibration.npz")


def test_an_output_that_is_an_input(home: Home, out: Path) -> None:
    before = Path(home / "tiny.onnx").read_bytes()
    for name in ("tiny.onnx", "calibration.npz"):
        refuse(home.build("tiny.onnx"), out, "output-is-input", output=home / name)
    assert Path(home / "tiny.onnx").read_bytes() == before


def test_a_cache_that_cannot_be_written(
    home: Home, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out.parent / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("EDGEPACK_CACHE", str(out.parent / "cache"))
    refuse(home.build("tiny.onnx"), out, "output-unwritable", str(out.parent / "cache"))
    assert ask("cache", "info").document["entries"] == 0


def test_a_name_that_the_system_does_not_take(home: Home, out: Path) -> None:
    refuse(home.build("x" * 300), out, "host-io")


# The other commands.


def test_a_script_is_not_run_because_it_was_named(tmp_path: Path) -> None:
    (tmp_path / "x.edgepack").write_text("open('ran', 'w')")
    for command in ("verify", "bench", "inspect"):
        done = edgepack(command, "x.edgepack", "--json", cwd=tmp_path)
        assert one_document(done.stdout)["error"]["code"] == "bundle-malformed"
    assert [path.name for path in tmp_path.iterdir()] == ["x.edgepack"]


@pytest.mark.parametrize("command", ["verify", "bench", "inspect", "run"])
@pytest.mark.parametrize(
    ("name", "code"), [("absent", "bundle-unreadable"), ("nets.py", "bundle-malformed")]
)
def test_what_is_no_bundle(home: Home, command: str, name: str, code: str, out: Path) -> None:
    extra = ["--output", str(out / "o.npz")] if command == "run" else []
    assert ask_any(command, home / name, *extra) == (2, code)
    assert list(out.iterdir()) == []


def ask_any(*arguments: str) -> tuple[int, str]:
    """Status and code of a command in a process of its own."""
    done = edgepack(*arguments, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, one_document(done.stdout)["error"]["code"]


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"picture": images(2, 0)}, "input-names"),
        ({"image": images(2, 0)[:, :, :8]}, "input-shape"),
        ({"image": images(2, 0).astype(np.float64)}, "input-type"),
    ],
)
def test_running_on_the_wrong_samples(
    built: Path, out: Path, arrays: dict[str, np.ndarray], code: str
) -> None:
    np.savez(out.parent / "s.npz", **arrays)
    found = ask_any("run", str(built), "--input", str(out.parent / "s.npz"),
                    "--output", str(out / "o.npz"))  # fmt: skip
    assert found == (2, code)
    assert list(out.iterdir()) == []


def test_running_to_where_nothing_can_be_written(built: Path, out: Path) -> None:
    found = ask_any("run", str(built), "--output", str(out / "absent" / "o.npz"))
    assert found == (2, "output-unwritable")
    found = ask_any("run", str(built), "--input", "absent.npz", "--output", str(out / "o.npz"))
    assert found == (2, "samples-unreadable")
    assert list(out.iterdir()) == []
    os.mkfifo(out / "pipe")
    found = ask_any("run", str(built), "--output", str(out / "pipe"))
    assert found == (2, "output-unwritable")
    assert (out / "pipe").is_fifo()
