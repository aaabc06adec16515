"""Every kind of source, and every way to give inputs and samples, through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepack import load
from support.build_cases import (
    MANIFEST,
    SIZE,
    Home,
    ask,
    build,
    edgepack,
    one_document,
    tiny_onnx,
    tiny_weights,
)


def importable(home: Home, name: str) -> Any:
    """One of the user's networks, with the weights that its constructor draws."""
    import importlib.util
    import sys

    import torch

    sys.path.insert(0, str(home.folder))
    try:
        spec = importlib.util.spec_from_file_location("nets_of_a_test", home / "nets.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(home.folder))
        sys.modules.pop("parts", None)
    torch.manual_seed(5)
    return getattr(module, name)().eval()


def saved(home: Home, name: str) -> Any:
    """A network of the user's, its state dict saved under its name."""
    import torch

    network = importable(home, name)
    torch.save(network.state_dict(), home / f"{name}.pt")
    return network


def test_a_state_dict_as_a_user_builds_it(torch_home: Home) -> None:
    """Relative paths, in the user's folder, in a process of its own."""
    done = edgepack(
        "build", "tiny.pt", "--target", "cpu-fbgemm", "--arch", "nets.py:tiny",
        "--arch-arg", "classes=4", "--input", "image:float32:batch,1,16,16",
        "--calibration", "calibration.npz", "--evaluation", "evaluation.npz",
        "--latency", "none", "--json", cwd=torch_home.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = one_document(done.stdout)
    assert report["source"]["kind"] == "state-dict"
    assert report["verdict"] == "PASS"
    assert report["quality"]["metric"]["name"] == "top1"
    bundle = torch_home.folder / "tiny-cpu-fbgemm.edgepack"
    assert bundle.stat().st_size == report["bundle"]["bytes"]
    bundle.unlink()


def test_safetensors_with_inputs_inferred_from_samples(torch_home: Home, tmp_path: Path) -> None:
    arch = ["--arch", torch_home / "nets.py:tiny", "--chain", "none"]
    answer = build(torch_home.build("tiny.safetensors", *arch), tmp_path / "x.edgepack")
    assert answer.document["source"]["kind"] == "state-dict"
    (image,) = answer.document["inputs"]
    assert (image["name"], image["dtype"]) == ("image", "float32")
    assert image["shape"] == ["batch", 1, SIZE, SIZE]


def test_averaged_weights_in_a_manifest_and_in_the_report(torch_home: Home, tmp_path: Path) -> None:
    import torch

    raw = {f"module.{n}": torch.from_numpy(a) for n, a in tiny_weights().items()}
    averaged = {f"student.{n}": torch.from_numpy(a * 1.01) for n, a in tiny_weights().items()}
    torch.save({"model": raw, "ema": averaged, "epoch": 3}, tmp_path / "m.pt")
    (tmp_path / "m.toml").write_text(
        'schema = 1\n[model]\nweights = "ema"\nstrip_prefix = "student."\n'
    )
    options = ["--arch", torch_home / "nets.py:tiny", "--chain", "none", "--manifest",
               str(tmp_path / "m.toml")]  # fmt: skip
    arguments = torch_home.build(str(tmp_path / "m.pt"), *options)
    answer = build(arguments, tmp_path / "x.edgepack")
    account = "weights from 'ema'; prefix 'student.' removed; left: model, epoch"
    assert account in answer.stage("source")["notes"][0]
    assert account in answer.stderr
    weights = answer.document["source"]["weights"]
    assert weights == {"key": "ema", "prefix": "student.", "left": ["model", "epoch"]}
    refused = ask(*arguments, "--weights", "model", "--output", str(tmp_path / "y.edgepack"))
    assert refused.code == "source-strip-prefix"


def test_an_exported_program(torch_home: Home, tmp_path: Path) -> None:
    import torch

    network = importable(torch_home, "tiny")
    network.load_state_dict({n: torch.from_numpy(a) for n, a in tiny_weights().items()})
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, 1, SIZE, SIZE),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "tiny.pt2")
    name = program.graph_signature.user_inputs[0]
    with np.load(torch_home / "calibration.npz") as arrays:
        np.savez(tmp_path / "samples.npz", **{name: arrays["image"]})
    # The suffix means nothing: the content tells.
    (tmp_path / "tiny.pt2").rename(tmp_path / "tiny.bin")
    arguments = torch_home.build(str(tmp_path / "tiny.bin"), "--chain", "none", calibration="")
    samples = ["--evaluation", str(tmp_path / "samples.npz")]
    answer = build([*arguments, *samples], tmp_path / "x.edgepack")
    assert answer.document["source"]["kind"] == "exported-program"
    expected = network(torch.zeros(1, 1, SIZE, SIZE)).detach().numpy()
    (found,) = load(tmp_path / "x.edgepack")(
        **{name: np.zeros((1, 1, SIZE, SIZE), np.float32)}
    ).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_onnx_with_external_data(home: Home, tmp_path: Path) -> None:
    onnx.save(
        tiny_onnx(tiny_weights()), tmp_path / "tiny.onnx", save_as_external_data=True,
        location="tiny.weights", size_threshold=0,
    )  # fmt: skip
    assert (tmp_path / "tiny.weights").stat().st_size > 4000
    answer = build(home.build(str(tmp_path / "tiny.onnx")), tmp_path / "x.edgepack")
    assert answer.document["source"]["kind"] == "onnx"
    assert answer.document["verdict"] == "PASS"


@pytest.mark.parametrize("chain", ["none", "quantize"])
def test_a_hugging_face_folder(home: Home, tmp_path: Path, chain: str) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=32, dim=16, n_heads=2, n_layers=1, hidden_dim=32
    )
    network = transformers.DistilBertForSequenceClassification(config)
    network.save_pretrained(tmp_path / "bert")
    ids = np.random.default_rng(0).integers(1, 50, (110, 12))
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    arguments = home.build(str(tmp_path / "bert"), "--chain", chain, calibration="")
    arguments += ["--calibration", str(tmp_path / "ids.npz")]
    answer = build(arguments, tmp_path / "x.edgepack")
    assert answer.document["source"]["kind"] == "hugging-face"
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in answer.document["inputs"]}
    assert dtypes == {"input_ids": "int64", "attention_mask": "int64"}
    assert answer.document["target"]["precision"] == ("int8" if chain == "quantize" else "fp32")
    # Another length than the samples have: the axis is dynamic in the bundle too.
    short = np.ones((3, 5), np.int64)
    found = load(tmp_path / "x.edgepack")(input_ids=short, attention_mask=short)
    assert found["logits"].shape == (3, 2)


def test_a_pickled_module_needs_consent_and_the_report_says_so(
    torch_home: Home, tmp_path: Path
) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE, 4))
    torch.save(network, tmp_path / "whole.pt")
    options = ["--input", f"image:float32:batch,1,{SIZE},{SIZE}", "--chain", "none"]
    options.append("--allow-chance")
    arguments = torch_home.build(str(tmp_path / "whole.pt"), *options)
    refused = ask(*arguments, "--output", str(tmp_path / "x.edgepack"))
    assert (refused.status, refused.code) == (2, "source-pickled-module")
    assert "state_dict" in refused.document["error"]["hint"]
    assert not (tmp_path / "x.edgepack").exists()
    answer = build([*arguments, "--trust-pickle"], tmp_path / "x.edgepack")
    assert answer.document["source"]["trusted_pickle"] is True
    assert any("--trust-pickle" in warning for warning in answer.document["warnings"])
    assert "warning: " in answer.stderr


def test_several_inputs_integers_and_named_axes(torch_home: Home, tmp_path: Path) -> None:
    import torch

    network = saved(torch_home, "Tagger")
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 20, (110, 7))
    bias = generator.normal(size=(110, 7)).astype(np.float32)
    np.savez(tmp_path / "s.npz", tokens=tokens, bias=bias)
    options = [
        "--arch", torch_home / "nets.py:Tagger", "--input", "tokens:int64:batch,length",
        "--input", "bias:float32:batch,length", "--calibration", str(tmp_path / "s.npz"),
    ]  # fmt: skip
    answer = build(torch_home.build("Tagger.pt", *options, calibration=""), tmp_path / "x.edgepack")
    assert [t["shape"] for t in answer.document["inputs"]] == [["batch", "length"]] * 2
    assert any("length" in note for note in answer.stage("export")["notes"])
    fed = {"tokens": tokens[:2, :3], "bias": bias[:2, :3]}
    (found,) = load(tmp_path / "x.edgepack")(**fed).values()
    expected = network(*map(torch.from_numpy, fed.values())).detach().numpy()
    assert found.shape == (2, 3, 3)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_state_as_whole_feeds(torch_home: Home, tmp_path: Path) -> None:
    import torch

    network = saved(torch_home, "Cell")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(110, 1, 8)).astype(np.float32)
    state = generator.normal(size=(110, 2, 1, 4)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, state=state)
    options = [
        "--arch", torch_home / "nets.py:Cell", "--input", "x:float32:batch,8",
        "--input", "state:float32:2,batch,4", "--calibration", str(tmp_path / "s.npz"),
    ]  # fmt: skip
    answer = build(torch_home.build("Cell.pt", *options, calibration=""), tmp_path / "x.edgepack")
    assert len(answer.document["outputs"]) == 2
    assert answer.document["quality"]["samples"] == 110
    found = load(tmp_path / "x.edgepack")(x=x[0], state=state[0])
    expected = network(torch.from_numpy(x[0]), torch.from_numpy(state[0]))
    for a, b in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), atol=0.1)
    # The whole set in one call of `run`, each row a feed of its own.
    done = edgepack("run", str(tmp_path / "x.edgepack"), "--input", str(tmp_path / "s.npz"),
                    "--output", str(tmp_path / "out.npz"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        assert {len(outputs[name]) for name in outputs.files} == {110}


def test_a_single_number_as_input_and_the_names_of_a_dict(torch_home: Home, tmp_path: Path) -> None:
    import torch

    network = saved(torch_home, "Scaled")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 1, 4)).astype(np.float32)
    factor = generator.uniform(1, 2, size=40).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, factor=factor)
    options = [
        "--arch", torch_home / "nets.py:Scaled", "--input", "x:float32:batch,4",
        "--input", "factor:float32:", "--calibration", str(tmp_path / "s.npz"), "--chain", "none",
    ]  # fmt: skip
    answer = build(torch_home.build("Scaled.pt", *options, calibration=""), tmp_path / "x.edgepack")
    assert [t["name"] for t in answer.document["outputs"]] == ["scores", "best", "scale"]
    assert answer.document["inputs"][1]["shape"] == []
    done = edgepack("verify", str(tmp_path / "x.edgepack"))
    assert done.returncode == 0, done.stderr
    fed = {"x": np.concatenate(x[:3]), "factor": np.array(1.5, np.float32)}
    found = load(tmp_path / "x.edgepack")(**fed)
    expected = network(*map(torch.from_numpy, fed.values()))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name].detach().numpy(), atol=1e-5)


def test_a_recurrent_layer_with_the_time_first(torch_home: Home, tmp_path: Path) -> None:
    import torch

    network = saved(torch_home, "Steps")
    x = np.random.default_rng(0).normal(size=(40, 5, 1, 4)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x)
    options = [
        "--arch", torch_home / "nets.py:Steps", "--input", "x:float32:time,batch,4",
        "--calibration", str(tmp_path / "s.npz"), "--chain", "none",
    ]  # fmt: skip
    answer = build(torch_home.build("Steps.pt", *options, calibration=""), tmp_path / "x.edgepack")
    assert "Exported by tracing." in answer.stage("export")["notes"]
    fed = np.concatenate([x[0], x[1], x[2]]).reshape(5, 3, 4)[:4]
    (found,) = load(tmp_path / "x.edgepack")(x=fed).values()
    expected = network(torch.from_numpy(fed)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("written", ["samples.py:calibration", "samples:calibration"])
def test_samples_from_a_function(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.chdir(home.folder)
    options = ("--calibration", written, "--allow-chance", "--metric", "top1")
    arguments = home.build("tiny.onnx", *options, calibration="")
    answer = build(arguments, tmp_path / "x.edgepack")
    assert answer.document["samples"]["calibration"]["count"] == 120
    assert answer.document["quality"]["metric"]["samples"] == 120


def test_a_manifest_with_a_folder_of_pictures(torch_home: Home, tmp_path: Path) -> None:
    """Everything comes from the manifest, its paths from where it stands."""
    from PIL import Image

    pictures = tmp_path / "m" / "pictures"
    pictures.mkdir(parents=True)
    generator = np.random.default_rng(0)
    labels = []
    for i in range(8):
        pixels = generator.integers(i * 20, i * 20 + 90, (20, 24)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        labels.append(f"{i}.png,{i % 4}")
    (pictures / "labels.csv").write_text("file,label\n" + "\n".join(labels) + "\n")
    (tmp_path / "m" / "m.toml").write_text(MANIFEST)
    for name in ("nets.py", "parts.py"):
        (tmp_path / "m" / name).symlink_to(torch_home / name)
    options = ["--manifest", str(tmp_path / "m" / "m.toml"), "--max-drop", "100"]
    arguments = torch_home.build("tiny.pt", *options, calibration="")
    answer = build(arguments, tmp_path / "x.edgepack")
    report = answer.document
    assert report["name"] == "pictures"
    assert [(t["name"], t["kind"]) for t in report["outputs"]] == [("logits", "scores")]
    assert report["samples"]["evaluation"]["labels"] is True
    assert report["fidelity"]["samples"] == 5
    assert any("8 calibration samples" in warning for warning in report["warnings"])
    # Flags stand over the manifest.
    again = build([*arguments, "--chain", "none"], tmp_path / "y.edgepack")
    assert "quantize" not in [record["stage"] for record in again.document["ledger"]]


def test_inputs_from_the_model_itself(home: Home, tmp_path: Path) -> None:
    answer = build(home.build("tiny.onnx", "--chain", "none"), tmp_path / "x.edgepack")
    assert answer.document["inputs"][0]["shape"] == ["batch", 1, SIZE, SIZE]


def test_options_from_the_environment(home: Home, tmp_path: Path) -> None:
    environment = {"EDGEPACK_BUILD_TARGET": "cpu-fbgemm", "EDGEPACK_BUILD_CHAIN": "none",
                   "EDGEPACK_BUILD_CALIBRATION": home / "calibration.npz",
                   "EDGEPACK_BUILD_LATENCY": "none"}  # fmt: skip
    output = str(tmp_path / "x.edgepack")
    answer = ask("build", home / "tiny.onnx", "--output", output, env=environment)
    assert answer.status == 0, answer.stderr
    assert answer.document["target"]["precision"] == "fp32"
