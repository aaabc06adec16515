"""Indices that are sealed and still not to be believed: each is refused before anything runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepack.runtime.bundle.archive import INDEX
from edgepack.runtime.bundle.index import content_digest, encode, parse
from edgepack.runtime.errors import BundleError


@pytest.fixture
def document(linear_bundle: Path) -> dict:
    with zipfile.ZipFile(linear_bundle) as archive:
        found: dict = json.loads(archive.read(INDEX))
    return found


def refused(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse(data)
    assert caught.value.code == "bundle-index"
    assert caught.value.hint
    return caught.value.why


def test_the_index_itself_is_accepted(document: dict) -> None:
    assert parse(encode(document)).name == "linear"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["device"].update(isa=5), "device.isa: it has the wrong type"),
        (lambda d: d["device"].update(isa=[5]), "device.isa[0]: it is not a string"),
        (lambda d: d["device"].update(python=3.8), "device.python: it has the wrong type"),
        (lambda d: d["reference"].update(samples=0), "there are no reference samples"),
        (lambda d: d["reference"].update(samples=-1), "there are no reference samples"),
    ],
)
def test_what_is_sealed_and_wrong(change: Callable[[dict], None], why: str, document: dict) -> None:
    change(document)
    document["content_digest"] = content_digest(document)
    assert why in refused(encode(document))


def test_a_number_that_no_float_holds(document: dict) -> None:
    data = encode(document).replace(b'"name": "linear"', b'"name": "linear", "more": 1e999')
    assert "the number 1e999 is too large" in refused(data)


def test_brackets_in_strings_are_no_nesting(document: dict) -> None:
    document["name"] = "[{" * 50 + '\\"[' + "\\" * 3
    document["content_digest"] = content_digest(document)
    assert parse(encode(document)).name == document["name"]
    document["more"] = '"]' + "\\"
    nested: list = []
    for _ in range(32):
        nested = [nested]
    document["deep"] = nested
    assert "nested deeper than 32 levels" in refused(encode(document))
