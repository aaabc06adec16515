"""The shapes that an engine is built for: stated, or assumed aloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import SpecError
from edgepack.ledger import Ledger
from edgepack.progress import SilentProgress
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.spec import manifest, target, tensors
from edgepack.spec.tensors import Span
from edgepack.stages.shapes import check_axes, derive_profiles

INPUTS = (
    Tensor("tokens", "int64", ("batch", "length")),
    Tensor("mask", "int64", ("batch", "length")),
    Tensor("state", "float32", (2, "batch", 128)),
    Tensor("rate", "int64", ()),
)
FEED = {
    "tokens": np.zeros((1, 24), np.int64),
    "mask": np.zeros((1, 24), np.int64),
    "state": np.zeros((2, 1, 128), np.float32),
    "rate": np.array(16_000),
}


def request(name: str = "tensorrt-int8", **axes: Span) -> Request:
    return Request(Path("m"), target.load(name), Path("o"), "m", axes=axes)


def ledger() -> Ledger:
    return Ledger(SilentProgress())


def test_stated_ranges_are_taken_and_nothing_is_said() -> None:
    told = ledger()
    found = derive_profiles(
        request(batch=Span(1, 8, 32), length=Span(4, 24, 128)), INPUTS, FEED, told
    )
    assert found == {
        "tokens": ((1, 4), (8, 24), (32, 128)),
        "mask": ((1, 4), (8, 24), (32, 128)),
        "state": ((2, 1, 128), (2, 8, 128), (2, 32, 128)),
    }
    assert told.warnings == []


def test_what_is_not_stated_is_assumed_aloud() -> None:
    told = ledger()
    found = derive_profiles(request(batch=Span(1, 1, 1)), INPUTS, FEED, told)
    assert found["tokens"] == ((1, 1), (1, 24), (1, 96))
    (warning,) = told.warnings
    assert "length from 1 to 96, best at 24" in warning
    assert "batch" not in warning


def test_fixed_shapes_need_no_ranges() -> None:
    told = ledger()
    assert derive_profiles(request(), INPUTS[3:], FEED, told) == {}
    assert told.warnings == []


def test_other_engines_take_every_shape() -> None:
    told = ledger()
    assert derive_profiles(request("cpu-fbgemm"), INPUTS, FEED, told) == {}
    assert told.warnings == []


@pytest.mark.parametrize("span", [Span(2, 4, 8), Span(30, 40, 50)])
def test_the_reference_samples_must_fit(span: Span) -> None:
    with pytest.raises(SpecError) as caught:
        derive_profiles(request(length=span), INPUTS, FEED, ledger())
    assert caught.value.code == "axis-range"
    assert "the samples have 24" in caught.value.why


def test_a_range_for_no_axis_is_refused_with_the_near_name() -> None:
    with pytest.raises(SpecError) as caught:
        check_axes(request(lenght=Span(1, 2, 3)), INPUTS)
    assert caught.value.code == "axis-unknown"
    assert "did you mean 'length'" in caught.value.why
    with pytest.raises(SpecError) as caught:
        check_axes(request(batch=Span(1, 2, 3)), INPUTS[3:])
    assert "every axis of its inputs is fixed" in caught.value.why
    check_axes(request(batch=Span(1, 2, 3)), INPUTS)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (-1, 1, 1)])
def test_ranges_are_in_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError) as caught:
        Span(*sizes)
    assert caught.value.code == "axis-range"


def test_the_command_lines_form() -> None:
    assert tensors.parse_axis("batch=1:8:32") == ("batch", Span(1, 8, 32))
    for text in (
        "batch",
        "batch=",
        "batch=1:2",
        "=1:2:3",
        "batch=1:2:3:4",
        "b-h=1:1:1",
        "b=1:x:3",
        "b=1:-2:3",
        "b=1:2:" + "9" * 5000,
        "b=1:2:\u0663",
    ):
        with pytest.raises(SpecError) as caught:
            tensors.parse_axis(text)
        assert caught.value.code == "axis-spec"


def test_a_size_that_no_engine_counts_to() -> None:
    assert tensors.parse_axis(f"b=1:2:{2**31 - 1}")[1].most == 2**31 - 1
    with pytest.raises(SpecError) as caught:
        tensors.parse_axis(f"b=1:2:{2**31}")
    assert caught.value.code == "axis-range"


def test_an_axis_that_is_stated_twice() -> None:
    assert list(tensors.parse_axes(["a=1:2:3", "b=1:2:3"])) == ["a", "b"]
    with pytest.raises(SpecError) as caught:
        tensors.parse_axes(["a=1:2:3", "ab=1:1:1", "a=1:2:4"])
    assert (caught.value.code, caught.value.why) == ("axis-twice", "a=1:2:3, a=1:2:4")


def test_the_manifests_form(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text("schema = 1\n[axes.batch]\nmin = 1\nopt = 8\nmax = 32\n")
    assert manifest.load(path).axes == {"batch": Span(1, 8, 32)}
    for text, code in (
        ("[axes.batch]\nmin = 1\nopt = 8\n", "manifest-invalid"),
        ("[axes.batch]\nmin = 1\nopt = 8\nmax = 32\nmaks = 3\n", "manifest-invalid"),
        ("[axes.batch]\nmin = 0\nopt = 8\nmax = 32\n", "manifest-invalid"),
        ('[axes."a-b"]\nmin = 1\nopt = 8\nmax = 32\n', "manifest-invalid"),
        ("[axes.batch]\nmin = 9\nopt = 8\nmax = 32\n", "axis-range"),
    ):
        path.write_text("schema = 1\n" + text)
        with pytest.raises(SpecError) as caught:
            manifest.load(path)
        assert caught.value.code == code, text
