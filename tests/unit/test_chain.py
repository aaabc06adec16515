"""The chain as it is written: what it says, in which order, with which options."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.options import PassOptions
from edgepack.request import Flags, resolve
from edgepack.spec import manifest, target
from support import ROOT


def steps(text: str) -> list[tuple[str, dict]]:
    return [(step.name, dict(step.options)) for step in passes.parse_chain(text)]


def test_a_chain_with_lists_and_functions() -> None:
    assert steps("distill:layers=0,2,4:epochs=3, quantize:range=full") == [
        ("distill", {"layers": "0,2,4", "epochs": 3}),
        ("quantize", {"range": "full"}),
    ]
    assert steps("distill:student=some/nets.py:small:lr=0.1") == [
        ("distill", {"student": "some/nets.py:small", "lr": 0.1})
    ]
    assert steps("distill:augment=data.py:noise:student=nets:small:batch-size=4") == [
        ("distill", {"augment": "data.py:noise", "student": "nets:small", "batch_size": 4})
    ]
    assert steps("none") == steps("") == []


def test_options_are_those_of_the_pass() -> None:
    (step,) = passes.parse_chain("distill:layers=3:drop=0:epochs=2")
    options = step.read()
    assert (options.layers, options.epochs) == ((3,), 2)
    assert options.needs == ("training",)
    (step,) = passes.parse_chain("distill:stop=gate")
    assert step.read().needs == ("training", "gates")


@pytest.mark.parametrize("name", passes.PASSES)
def test_every_pass_is_there(name: str) -> None:
    """What the table says can be imported, and the pass has its table in profiles and manifests."""
    step = passes.Step(name, {})
    options = step.read()
    assert isinstance(options, PassOptions)
    assert {field.name for field in fields(options)}
    kinds = {"module": passes.ModulePass, "graph": passes.GraphPass}
    assert isinstance(step.definition, kinds[step.definition.domain])
    assert step.definition.name == name
    assert isinstance(step.definition, passes.PartialPass) or not options.repairs
    for schema in ("target", "manifest"):
        path = ROOT / "edgepack" / "spec" / "schema" / f"{schema}.schema.json"
        known = json.loads(path.read_text())["properties"]
        assert step.definition.table in known


def test_a_manifest_lies_over_the_profile_and_flags_over_both(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'schema = 1\nextends = "cpu-fbgemm"\nname = "mine"\n[distill]\nepochs = 7\nlr = 0.5\n'
    )
    (tmp_path / "manifest.toml").write_text(
        'schema = 1\n[training]\nsamples = "t.npz"\n[distill]\nlr = 0.25\nseed = 3\n'
    )
    (tmp_path / "t.npz").touch()
    request = resolve(
        Path("model.pt"),
        target.load(str(tmp_path / "mine.toml")),
        manifest.load(tmp_path / "manifest.toml"),
        Flags(chain="distill:seed=4,quantize"),
    )
    distill, quantize = request.chain
    assert dict(distill.options) == {"epochs": 7, "lr": 0.25, "seed": 4}
    assert quantize.options["range"] == "pair-safe"
    assert request.training == str(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("quantize,distill", "chain-order"),
        ("quantize,quantize", "chain-conflict"),
        ("distill,distill:student=nets.py:small", "chain-conflict"),
        ("distill:layer=3", "chain-option"),
        ("distil", "chain-unknown-pass"),
    ],
)
def test_what_cannot_be(text: str, code: str) -> None:
    with pytest.raises(ChainError) as caught:
        passes.check_chain(passes.parse_chain(text))
    assert caught.value.code == code
    assert caught.value.why
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["distill,quantize", "distill:drop=0.5,distill,quantize", "distill", "quantize", ""]
)
def test_what_can_be(text: str) -> None:
    passes.check_chain(passes.parse_chain(text))


def test_an_option_after_a_comma_is_answered_with_the_chain_as_it_should_be() -> None:
    with pytest.raises(ChainError) as caught:
        passes.parse_chain("half,quantize:calibrator=percentile,percentile=99.9,repair=true")
    assert caught.value.code == "chain-unknown-pass"
    assert caught.value.hint == (
        "options of one pass are separated by ':': --chain "
        "half,quantize:calibrator=percentile:percentile=99.9:repair=true"
    )
    with pytest.raises(ChainError) as caught:
        passes.parse_chain("calibrator=mse,quantize")
    assert caught.value.hint == "an option follows its pass: --chain quantize:calibrator=mse"


def test_what_a_chain_needs() -> None:
    found = passes.parse_chain("distill,quantize")
    assert passes.list_passes_needing("training", found) == ("distill",)
    assert passes.list_passes_needing("calibration", found) == ("quantize",)
    assert [s.name for s in passes.select_domain("module", found)] == ["distill"]
    assert [s.name for s in passes.select_domain("graph", found)] == ["quantize"]


def test_checking_a_chain_imports_neither_onnx_nor_torch() -> None:
    """`--dry-run` reads the options of every pass, and must answer at once."""
    program = (
        "import sys\n"
        "from edgepack import passes\n"
        "chain = 'prune,factorize,distill:aware=true,quantize:scheme=fbgemm,half'\n"
        "passes.check_chain(passes.parse_chain(chain))\n"
        "print({'onnx', 'onnxruntime', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
