"""A build verifies every variant of its bundle, and leaves out one that misses a gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import engine, proof, stages
from edgepack.cache import Cache
from edgepack.context import Context
from edgepack.device import Local
from edgepack.ledger import Ledger
from edgepack.progress import SilentProgress
from edgepack.proof import Outcome
from edgepack.proof.job import list_variants
from edgepack.report import render_html, render_terminal
from edgepack.request import Flags, Request, resolve
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import ONNXRUNTIME, OPENVINO
from edgepack.runtime.bundle.index import check_file, read_index
from edgepack.runtime.device.machine import describe
from edgepack.spec import target
from edgepack.spec.manifest import Manifest
from support.build_cases import Home, render_text

pytest.importorskip("openvino", reason="OpenVINO is not installed")
if describe()["arch"] != "x86_64":
    pytest.skip("OpenVINO is the engine of x86-64 alone", allow_module_level=True)


def request_for(home: Home, output: Path, profile: target.Target) -> Request:
    flags = Flags(
        calibration=str(home.folder / "calibration.npz"),
        evaluation=str(home.folder / "evaluation.npz"),
        chain="none",
        latency="none",
        no_emulate=True,
        output=output,
    )
    return resolve(home.folder / "tiny.onnx", profile, Manifest(), flags)


def build_with_engines(request: Request, cache: Path) -> Outcome:
    """Build as the pipeline does, with OpenVINO first in place of an auction's decision."""
    context = Context(request, Cache(cache), Ledger(SilentProgress()))
    shared = stages.SharedStages()
    opened = shared.open(context)
    source, reference = shared.run_original(context, opened)
    build_context = stages.export(context, source, opened.inputs, opened.samples, reference)
    build_context = stages.simplify(build_context)
    graph = stages.build_engine(build_context.original, build_context)
    first = engine.list_alternatives(request.target)[0]
    graph = replace(graph, variants=(first, *list_variants(request.target)))
    wheels = stages.fetch_wheels(context, opened.samples)
    with Local(runs_bundle=True) as device:
        return proof.prove(proof.Job(build_context, graph, wheels), device)


def list_engines(path: Path) -> tuple[list[str], bool]:
    """Return the engines of a bundle's variants, and whether its requirements name OpenVINO."""
    with Archive(str(path)) as archive:
        index = read_index(archive)
        requirements = check_file(archive, index, "requirements.txt").decode()
    return [variant.engine for variant in index.variants], "openvino==" in requirements


def test_both_engines_are_verified_and_ship(home: Home, tmp_path: Path) -> None:
    request = request_for(home, tmp_path / "m.edgepack", target.load("cpu-fbgemm"))
    outcome = build_with_engines(request, tmp_path / "cache")
    assert (outcome.accepted, outcome.report["verdict"]) == (True, "PASS")
    assert list_engines(outcome.path) == ([OPENVINO, ONNXRUNTIME], True)
    (section,) = outcome.report["variants"]
    assert section["passed"]
    # The whole evaluation set for quality, the stored answers for fidelity.
    assert section["quality"]["samples"] == outcome.report["quality"]["samples"]
    assert section["fidelity"]["gates"][0]["bound"] == 40
    for text in (
        render_text(render_terminal, outcome.report),
        render_html(outcome.report),
    ):
        assert "openvino" in text
        assert "from onnxruntime" in text


def test_a_variant_that_misses_its_gate_is_left_out_and_the_build_goes_on(
    home: Home, tmp_path: Path
) -> None:
    profile = target.load("cpu-fbgemm")
    # No float arithmetic of two engines is that close.
    profile = replace(profile, fidelity={"snr_db": 300})
    request = request_for(home, tmp_path / "m.edgepack", profile)
    outcome = build_with_engines(request, tmp_path / "cache")
    assert outcome.accepted
    assert list_engines(outcome.path) == ([ONNXRUNTIME], False)
    (section,) = outcome.report["variants"]
    assert not section["passed"]
    assert "300" in section["misses"][0]
    assert any("left out" in warning for warning in outcome.report["warnings"])
