"""The schemas of manifests and profiles describe every key, and old names still work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import DeprecatedName
from edgepack.passes.catalogue import describe_pass
from edgepack.spec import manifest, target, toml_reader
from support import ROOT
from support.build_cases import ask, edgepack

MANIFESTS = sorted((ROOT / "manifests").glob("*.toml"))


def keys(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every key that a schema declares, with its path."""
    for name, key in schema.get("properties", {}).items():
        yield f"{path}.{name}", key
        yield from keys(key, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from keys(schema[part], f"{path}.{part}")
    for name, definition in schema.get("$defs", {}).items():
        yield f"$defs.{name}", definition
        yield from keys(definition, f"$defs.{name}")


@pytest.mark.parametrize("name", toml_reader.SCHEMAS)
def test_every_key_has_a_description(name: str) -> None:
    described = dict(keys(toml_reader.read_schema(name)))
    assert len(described) > 40
    for path, key in described.items():
        sentence = key.get("description", "")
        assert len(sentence.split()) >= 2, path
        assert sentence.endswith("."), path


def test_the_table_of_quantize_has_every_option_of_the_pass() -> None:
    options = toml_reader.read_schema("target")["$defs"]["quantize"]["properties"]
    assert sorted(options) == sorted(option.name for option in describe_pass("quantize").options)


def test_the_schema_is_printed() -> None:
    done = edgepack("manifest", "schema")
    assert json.loads(done.stdout) == toml_reader.read_schema("manifest")
    assert ask("manifest", "schema", "--target").document == toml_reader.read_schema("target")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_checked(path: Path) -> None:
    answer = ask("manifest", "check", str(path), "--target", "cpu-fbgemm")
    assert answer.status == 0, answer.stderr
    assert answer.document["valid"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("schema = 1\n[quantise]\n", "manifest-invalid"),
        ("schema = 1\n[distill]\ntemprature = 2\n", "chain-option"),
        ('schema = 1\nchain = "quantise"\n', "chain-unknown-pass"),
        ("schema = 1\n[quantize]\nmode = 'static'\nbits = 4\n", "quantize-option"),
    ],
)
def test_a_manifest_with_a_fault(text: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    answer = ask("manifest", "check", str(path))
    assert (answer.status, answer.code) == (2, code)


def test_an_old_table_still_works_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('schema = 1\n[quantization]\ncalibrator = "minmax"\n')
    with pytest.warns(DeprecatedName, match=r"\[quantization\] is now called \[quantize\]"):
        settings = manifest.load(path)
    assert settings.read_table("quantize") == {"calibrator": "minmax"}
    done = edgepack("manifest", "check", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: valid\n")
    assert done.stderr == (
        f"warning: the table [quantization] is now called [quantize]; rename it in {path}\n"
    )


def test_an_old_table_beside_the_new_one_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cpu-fbgemm"\nname = "mine"\n[quantize]\n[quantization]\n')
    with pytest.raises(target.SpecError, match="quantization: unknown key"):
        target.load(str(path))


def test_an_old_option_still_works_with_a_warning(linear_bundle: Path) -> None:
    answer = ask("bench", str(linear_bundle), "--length", "smoke")
    assert answer.status == 0, answer.stderr
    assert answer.document["length"] == "smoke"
    assert "warning: --length is now called --latency" in answer.stderr
    assert "warning" not in ask("bench", str(linear_bundle), "--latency", "smoke").stderr
