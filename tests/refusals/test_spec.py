"""Wrong profiles, manifests and options: every fault is named with its key, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack import passes
from edgepack.errors import ChainError, EdgepackError, SpecError
from edgepack.request import Flags, resolve
from edgepack.spec import manifest, target, tensors

PROFILE = (target.folder() / "cpu-fbgemm.toml").read_text()


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def refuse(call, *args, **kwargs) -> EdgepackError:
    with pytest.raises((SpecError, ChainError)) as caught:
        call(*args, **kwargs)
    return caught.value


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = (
        PROFILE.replace("range =", 'mode = "dynamik"\nbits = 5\nrang =')
        .replace('calibrator = "mse"', 'calibrator = "mean"')
        .replace('arch = "x86_64"', "arch = 64")
        .replace("agreement = 0.97", "agreement = 97")
    )
    error = refuse(target.load, str(written(tmp_path, text)))
    assert error.code == "target-invalid"
    for told in (
        "quantize.rang: unknown key; did you mean 'range'?",
        "quantize.calibrator: 'mean' is not known",
        "quantize.mode: 'dynamik' is not known; did you mean 'dynamic'?",
        "quantize.bits",
        "device.arch",
        "gates.quality.agreement",
    ):
        assert told in error.why


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("schema = 1\nname = ", "spec-not-toml"),
        ("\x00\x01", "spec-not-toml"),
        ("schema = 2", "target-invalid"),
        ("", "target-invalid"),
        ('extends = "no-such-profile"', "target-unknown"),
        ("extends = 7", "target-extends"),
        ('extends = "mine.toml"', "target-extends"),
        ("# " + "x" * (2 << 20), "spec-too-large"),
    ],
)
def test_profiles(tmp_path: Path, text: str, code: str) -> None:
    assert refuse(target.load, str(written(tmp_path, text))).code == code


def test_unknown_profile_is_answered_with_the_nearest() -> None:
    error = refuse(target.load, "cpu-fbgem")
    assert error.code == "target-unknown"
    assert "did you mean 'cpu-fbgemm'" in error.why


def test_missing_file(tmp_path: Path) -> None:
    assert refuse(target.load, str(tmp_path / "absent.toml")).code == "spec-unreadable"
    assert refuse(manifest.load, tmp_path / "absent.toml").code == "spec-unreadable"


def test_extends_lays_keys_over_the_base(tmp_path: Path) -> None:
    path = written(tmp_path, 'extends = "cpu-fbgemm"\nname = "mine"\n[quantize]\nrange = "full"\n')
    profile = target.load(str(path))
    assert (profile.name, profile.read_table("quantize")["range"]) == ("mine", "full")
    assert profile.read_table("quantize")["scheme"] == "fbgemm"


@pytest.mark.parametrize(
    "text",
    [
        "schema = 1\n[inputs]\nname = 1",
        'schema = 1\n[[inputs]]\nname = "x"\ndtype = "float31"\nshape = [1]',
        'schema = 1\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [0]',
        'schema = 1\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = ["a b"]',
        'schema = 1\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [4.0]',
        'schema = 1\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [99999999999]',
        "schema = 1" + '\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [4]' * 2,
        'schema = 1\n[[outputs]]\nname = "y"\n[[outputs]]\nname = "y"\nkind = "scores"',
        'schema = 1\nname = "../evil"',
        'schema = 1\n[evaluation]\nsamples = "x"\nmetric = 3',
        "schema = 1\n[calibraton]",
        "schema = 1\n[gates.quality]\nsnr = 3",
        "schema = 1\n[pictures]\nscale = 0",
    ],
)
def test_manifests(tmp_path: Path, text: str) -> None:
    assert refuse(manifest.load, written(tmp_path, text)).code == "manifest-invalid"


@pytest.mark.parametrize(
    "text", ["", "x", "x:float32", "x:float33:1", ":float32:1", "x:float32:1,-2", "x:float32:b c"]
)
def test_inputs(text: str) -> None:
    assert refuse(tensors.parse, text).code == "input-spec"


def test_a_name_with_colons_and_a_scalar() -> None:
    tensor = tensors.parse("serving:0:int64:")
    assert (tensor.name, tensor.dtype, tensor.shape) == ("serving:0", "int64", ())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("quantise", "chain-unknown-pass"),
        ("quantize,", "chain-unknown-pass"),
        ("quantize:range", "chain-option"),
        ("quantize:range=full:range=full", "chain-option"),
    ],
)
def test_chains(text: str, code: str) -> None:
    assert refuse(passes.parse_chain, text).code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"rang": "full"}, "chain-option"),
        ({"range": "fulll"}, "quantize-option"),
        ({"calibrator": "mean"}, "quantize-option"),
        ({"percentile": 3.0}, "quantize-option"),
    ],
)
def test_options_of_quantize(options: dict, code: str) -> None:
    assert refuse(passes.Step("quantize", options).read).code == code


def test_flags_that_exclude_each_other() -> None:
    error = refuse(
        resolve,
        Path("model.onnx"),
        target.load("cpu-fbgemm"),
        manifest.Manifest(),
        Flags(calibration="x.npz", random_calibration=True),
    )
    assert error.code == "calibration-twice"
