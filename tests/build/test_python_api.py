"""Builds from Python: a module in memory, values as samples, exceptions and bundles as results."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgepack
from edgepack.source.folder_account import hash_folder
from edgepack.source.live import LiveModel, load_live
from support import ROOT
from support.build_cases import build as cli_build

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "transformers", "click", "rich", "jinja2", "PIL")
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
"""
OPTIONS: dict[str, Any] = {"no_emulate": True, "latency": "none", "progress": False}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build in a folder of its own, with a network in a file."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "net.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def network() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    module: nn.Module = scope["net"]()
    with torch.no_grad():
        module(torch.randn(256, 8))
    return module


@pytest.fixture(scope="module")
def samples(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, copy.deepcopy(network).eval()(x).argmax(1)


@pytest.fixture(scope="module")
def built(network: nn.Module, samples: tuple[torch.Tensor, torch.Tensor]) -> edgepack.Bundle:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bundle = edgepack.build(
            network,
            calibration=DataLoader(TensorDataset(*samples), 16),
            evaluation=samples,
            inputs="x:float32:batch,8",
            name="net",
            **OPTIONS,
        )
    # What the command line prints is a warning of Python, at the line of the caller.
    assert [str(w.message) for w in caught] == bundle.report["warnings"]
    assert {w.filename for w in caught} == {__file__}
    return bundle


def test_a_module_in_memory_is_built_and_left_as_it_was(
    network: nn.Module, built: edgepack.Bundle, samples: tuple[torch.Tensor, torch.Tensor]
) -> None:
    assert built.path == Path("net-cpu-fbgemm.edgepack")
    assert built.verdict == "PASS"
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network._forward_hooks
    verification = built.verify()
    assert verification
    assert repr(verification) == "PASS on this machine"
    assert verification.fidelity["passed"]
    x, labels = samples
    (scores,) = built(x).values()
    assert (scores.argmax(1) == labels.numpy()).mean() > 0.95
    assert built.predict(x[:1]).top[0].index == built.predict({"x": x[:1].tolist()}).top[0].index


def test_a_module_and_its_file_give_the_same_bundle(
    network: nn.Module, built: edgepack.Bundle, samples: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The command line reads the weights from a file, and the samples from another."""
    torch.save(network.state_dict(), "net.pt")
    x, labels = (tensor.numpy() for tensor in samples)
    np.savez("samples.npz", x=x, labels=labels)
    command = ["build", "net.pt", "--arch", "net.py:net", "--target", "cpu-fbgemm"]
    command += ["--calibration", "samples.npz", "--evaluation", "samples.npz", "--no-emulate"]
    answer = cli_build([*command, "--latency", "none", "--json"], Path("file.edgepack").absolute())
    digest = answer.document["bundle"]["content_digest"]
    assert digest == built.report["bundle"]["content_digest"]


def test_a_bundle_does_not_regress_against_itself(built: edgepack.Bundle) -> None:
    comparison = built.compare(built.path, timed=False)
    assert comparison
    assert comparison.regressions == []
    assert "no regression" in repr(comparison)


def test_a_bundle_shows_itself_as_text_and_in_a_notebook(built: edgepack.Bundle) -> None:
    opened = edgepack.open(built.path)
    for bundle in (built, opened):
        assert repr(bundle).startswith("Bundle('net-cpu-fbgemm.edgepack'): PASS\n  model: ")
        page = bundle._repr_html_()
        assert "net → cpu-fbgemm" in page
        assert "Top-1 agreement" in page
        assert "<script" not in page
    assert opened.report["bundle"]["sha256"] == built.report["bundle"]["sha256"]
    opened.report["name"] = "<b>net</b>"
    assert "<b>net" not in opened._repr_html_()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_missed_gate_raises_with_the_rejected_bundle(
    network: nn.Module, samples: tuple[torch.Tensor, torch.Tensor]
) -> None:
    Path("strict.toml").write_text('schema = 1\nname = "strict"\n[gates.quality]\nsnr_db = 90\n')
    with pytest.raises(edgepack.GateError) as caught:
        edgepack.build(
            network,
            calibration=samples,
            evaluation=samples,
            inputs="x:float32:batch,8",
            manifest="strict.toml",
            chain="quantize:repair=false",
            **OPTIONS,
        )
    error = caught.value
    assert isinstance(error, edgepack.RejectedError)
    assert error.bundle.path == Path("strict-cpu-fbgemm.rejected.edgepack")
    assert error.bundle.path.exists()
    assert not Path("strict-cpu-fbgemm.edgepack").exists()
    assert (error.bundle.verdict, error.report["verdict"]) == ("FAIL", "FAIL")
    assert "SNR of output" in error.why


def test_a_build_without_samples_is_unverified_and_warns(network: nn.Module) -> None:
    with pytest.warns() as caught:
        bundle = edgepack.build(
            network, chain="none", inputs="x:float32:batch,8", output="bare.edgepack", **OPTIONS
        )
    assert bundle.verdict == "UNVERIFIED"
    (warning,) = [w for w in caught if w.category is edgepack.UnverifiedWarning]
    assert str(warning.message).startswith("bare.edgepack is UNVERIFIED: ")
    assert warning.filename == __file__


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_onnx_graph_in_memory_is_built_as_its_file(
    built: edgepack.Bundle, samples: tuple[torch.Tensor, torch.Tensor]
) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    shape = ["batch", 8]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save_model(model, "g.onnx")
    digests = set()
    for source in (model, "g.onnx"):
        bundle = edgepack.build(
            source, evaluation=samples[0], chain="none", output="g.edgepack", name="g", **OPTIONS
        )
        digests.add(bundle.report["bundle"]["content_digest"])
    assert len(digests) == 1


def test_what_cannot_be_built_is_refused_with_a_code(network: nn.Module) -> None:
    with pytest.raises(edgepack.SourceError, match="source-live"):
        edgepack.build(object())
    with pytest.raises(TypeError, match="did you mean max_drop"):
        edgepack.build(network, max_dorp=1)  # type: ignore[call-arg]
    with pytest.raises(edgepack.SpecError, match="inputs-unknown"):
        edgepack.build(network, chain="none", output="x.edgepack", **OPTIONS)
    samples = np.zeros((4, 4), np.float32)
    with pytest.raises(edgepack.DataError, match="samples-types-differ"):
        edgepack.build(network, calibration=samples, evaluation=samples.astype("f8"), **OPTIONS)
    # An error names the samples by their role: two of them may be tensors.
    with pytest.raises(edgepack.DataError, match=r"calibration \(list_iterator\) can be read"):
        edgepack.build(network, calibration=iter([samples]), evaluation=samples, **OPTIONS)

    class Locked(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("no copy")

    with pytest.raises(edgepack.SourceError, match="source-live-copy"):
        load_live(LiveModel(Locked(2, 2), "locked"))


AGAIN = """
import sys
from edgepack.cli import main
try:
    main()
finally:
    print("imported", *sorted({"torch", "transformers"}.intersection(sys.modules)), file=sys.stderr)
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_of_transformers_is_built_as_its_folder_which_is_not_loaded_again() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=32, dim=16, n_heads=2, n_layers=1, hidden_dim=32
    )
    torch.manual_seed(0)
    network = transformers.DistilBertForSequenceClassification(config)
    before = network.config.to_dict()
    ids = np.random.default_rng(0).integers(0, 50, (64, 12))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    options = {**OPTIONS, "chain": "none", "name": "bert", "output": "bert.edgepack"}
    bundle = edgepack.build(network, evaluation=samples, **options)
    assert network.config.to_dict() == before
    assert network.training
    network.save_pretrained("bert")
    np.savez("ids.npz", **samples)
    command = ["build", "bert", "--target", "cpu-fbgemm", "--evaluation", "ids.npz", "--json"]
    command += ["--chain", "none", "--no-emulate", "--latency", "none", "--output", "b.edgepack"]
    done = subprocess.run([sys.executable, "-c", AGAIN, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bundle"]["content_digest"] == bundle.report["bundle"]["content_digest"]
    status = {record["stage"]: record["status"] for record in document["ledger"]}
    assert [status[s] for s in ("source", "original", "export", "simplify")] == ["cached"] * 4
    assert done.stderr.splitlines()[-1] == "imported"
    # Any file of the folder may decide the answers.
    digest = hash_folder(Path("bert"))
    for name, content in (("config.json", b" "), ("vocab.txt", b"a"), ("model.safetensors", b"")):
        path = Path("bert", name)
        original = path.read_bytes() if path.exists() else b""
        path.write_bytes(original + content)
        if name == "model.safetensors":
            data = bytearray(original)
            data[-1] ^= 1
            path.write_bytes(data)
        assert hash_folder(Path("bert")) != digest, name
        path.write_bytes(original)
        digest = hash_folder(Path("bert"))


CELL = """
import torch
from torch import nn
GAIN = {gain}
{space}
def shape(x):
    return {shape}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 2)
    def forward(self, x):
        return self.out(shape(x)) * GAIN
"""


def test_code_of_a_notebook_is_part_of_the_digest() -> None:
    def digest(gain: int = 2, shape: str = "x", space: str = "") -> str:
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(CELL.format(gain=gain, shape=shape, space=space), scope)
        torch.manual_seed(0)
        return load_live(LiveModel(scope["Net"](), "net")).digest

    # The line of a definition, and a name beside it, do not matter.
    assert digest() == digest(space="\n\nunused = 3\n")
    assert len({digest(), digest(gain=3), digest(shape="x * 2"), digest(shape="x + 1")}) == 4


def test_the_weights_of_normalized_and_compiled_modules_are_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normalized = nn.utils.weight_norm(nn.Linear(3, 2))
    before = normalized.weight
    source = load_live(LiveModel(torch.compile(normalized, backend="eager"), "net"))
    assert normalized.weight is before
    (answer,) = source.run({"input": np.ones((1, 3), np.float32)})
    expected = normalized(torch.ones(1, 3)).detach().numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-6)


def test_importing_edgepack_brings_nothing_along() -> None:
    program = (
        "import json, sys; before = set(sys.modules); import edgepack; dir(edgepack); "
        "edgepack.__version__; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    modules = json.loads(done.stdout)
    assert set(HEAVY).isdisjoint(modules)
    assert [name for name in modules if name.startswith("edgepack")] == ["edgepack"]
    assert len(modules) < 20
    program = "import sys, edgepack; edgepack.load; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert {"torch", "onnx", "onnxruntime", "click"}.isdisjoint(done.stdout.split())
